"""The plan of a gate as a pipeline declares it: one line, its numbers, and whether it is hopeless."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import ceil

from service.gate import sentences as say
from service.gate import stats
from service.gate.base import GateConfig
from service.gate.guards import budget, retention
from service.gate.simulation.asked import CHURNS, Asked, Bound, asked
from service.gate.simulation.planning import one_experience
from service.gate.simulation.rates import Holdout, promote_rate

Rates = tuple[tuple[float, Asked], ...]
"""(churn, updates of 100 that lose nothing and are asked about); empty: not known."""

_MOST_ASKED = 50.0
"""A gate that asks about more of 100 harmless updates is declared with `accept` alone."""
_FEW_ASKED = 10.0
"""What records are suggested for, and named where a trigger declares none."""
_MOST_RECORDS = 1_000_000
"""More records of an experience are never suggested."""
_MOST_SEARCHED = 500
"""With more holdouts than so many, the loss of one takes seconds: no records are searched for."""
_LEAST_MARGIN = 1e-5
"""Smaller margins take more records than are counted."""


@dataclass(frozen=True)
class DeclaredPlan:
    """What a gate means for the experiences that its pipeline declares."""

    sentence: str
    records: int | None
    """Records of an experience that the numbers are for; None: the trigger declares none."""
    records_bound: Bound
    """Whether experiences have as many, at least as many, or at most as many."""
    gate_records: int | None
    sealed_records: int | None
    asked: Rates
    unseen_loss: float | None
    """Share of the right answers that one experience may lose and pass."""
    halved_at: int | None
    """Records of an experience that halve both; None: not known, or none do."""
    notes: tuple[str, ...]
    hopeless: str | None
    """Why most harmless updates would be asked about; None: they would not, or it is not known."""
    remedy: str | None
    """What would help."""


def declared_plan(
    config: GateConfig, *, gate: float, audit: float, fewest: int, most: int | None
) -> DeclaredPlan:
    """The plan of a gate, in milliseconds: nothing is simulated.

    Args:
        config: the gate.
        gate: share of an experience that every later update is judged on.
        audit: share that is sealed.
        fewest: records that every experience has at least, as its trigger declares; 1: it does not.
        most: records that it has at most; None: not declared.
    """
    margins = (config.margin, config.learning_margin, retention.block_margin(config), config.budget)
    if min(margins) < _LEAST_MARGIN:
        sentence = f"A margin below {_LEAST_MARGIN:g} takes more records than are counted: there is no plan."
        return DeclaredPlan(sentence, None, "about", None, None, (), None, None, (), None, None)
    return _Declared(config, gate, audit).plan(fewest, most)


@dataclass(frozen=True)
class _Declared:
    config: GateConfig
    gate: float
    audit: float

    def plan(self, fewest: int, most: int | None) -> DeclaredPlan:
        records, bound = _sized(fewest, most)
        rates = () if records is None else self._rates(records, bound)
        loss = None if records is None else self.loss(records)
        halved = None if records is None else self._halved(records, rates, loss)
        hopeless = self._hopeless(most, rates)
        return DeclaredPlan(
            self._sentence(records, bound, rates, loss, halved),
            records,
            bound,
            None if records is None else self.judged(records),
            None if records is None else self.sealed(records),
            rates,
            loss,
            halved,
            tuple(self._notes(most)),
            *(hopeless or (None, None)),
        )

    def judged(self, records: int) -> int:
        return round(records * self.gate)

    def sealed(self, records: int) -> int:
        return round(records * self.audit)

    def asked(self, records: int, churn: float = CHURNS[0]) -> Asked | None:
        return asked(self.config, gate=self.judged(records), sealed=self.sealed(records), churn=churn)

    def loss(self, records: int) -> float:
        """What one experience of so many records may lose and pass; all of it where none is judged."""
        judged = self.judged(records)
        return one_experience(self.config, judged).loss if judged else 1.0

    def _rates(self, records: int, bound: Bound) -> Rates:
        """The rates at each churn, if they hold for all experiences that the trigger may cut."""
        found = [(churn, self.asked(records, churn)) for churn in CHURNS]
        known = [(churn, rate) for churn, rate in found if rate is not None]
        # More records ask less often: of at most so many, at least as many updates are asked about.
        turned: dict[Bound, Bound] = {"about": "about", "at most": "at least", "at least": "at most"}
        limit = turned[bound]
        if any({rate.bound, limit} == {"at least", "at most"} for _, rate in known):
            return ()
        return tuple(
            (churn, rate if limit == "about" else Asked(rate.mean, rate.low, rate.high, limit))
            for churn, rate in known
        )

    # What would be better.

    def _from(self, records: int, holds: Callable[[int], bool]) -> int | None:
        """The fewest records, to two figures and more than so many, from which on something holds."""
        if self.config.max_holdouts > _MOST_SEARCHED:
            return None
        steps = [
            figures * 10**power
            for power in range(6)
            for figures in range(10, 100)
            if records < figures * 10**power <= _MOST_RECORDS
        ]
        low, high = -1, len(steps)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if holds(steps[middle]) else (middle, high)
        return steps[high] if high < len(steps) else None

    def _asks_at_most(self, records: int, most: float) -> bool:
        rate = self.asked(records)
        return rate is not None and rate.bound != "at least" and rate.mean <= most

    def _halved(self, records: int, rates: Rates, loss: float | None) -> int | None:
        if loss is None or (rates and rates[0][1].bound == "at least"):
            return None
        few = rates[0][1].mean / 2 if rates and rates[0][1].mean >= 1 else None
        return self._from(
            records,
            lambda more: self.loss(more) <= loss / 2 and (few is None or self._asks_at_most(more, few)),
        )

    # Whether there is any hope.

    def _hopeless(self, most: int | None, rates: Rates) -> tuple[str, str] | None:
        """Why most harmless updates would be asked about, and what would help; None: not so, or not known."""
        return self._never_settled(most) or self._asks_mostly(rates, most)

    def _never_settled(self, most: int | None) -> tuple[str, str] | None:
        """The same from what can ever be judged together, however many experiences are learnt."""
        config = self.config
        judged = self._most_judged(config.holdout_records if most is None else self.judged(most))
        found = self._too_few(judged, max(config.margin, retention.block_margin(config)), "margin")
        if found is None and most is not None and config.learning_gain is None:
            # The new experience is judged together with past ones.
            found = self._too_few(judged + self.judged(most), config.learning_margin, "learning_margin")
        return found

    def _too_few(self, judged: int, margin: float, name: str) -> tuple[str, str] | None:
        """Why so many gate records let most harmless updates fail at a margin; None: they do not."""
        first = stats.spent(self.config.alpha, 1)
        usual = self.config.model_copy(update={"planned_churn": CHURNS[0]})
        if judged >= retention.records_of_block(usual, margin, alpha=first):
            return None
        enough = judged >= int(stats.floor_n(margin, first))
        passes = promote_rate(Holdout(judged, CHURNS[0], margin, first), 0.0) if enough else 0.0
        if passes >= 1 - _MOST_ASKED / 100:
            return None
        settle = retention.records_of_block(usual, margin, alpha=first)
        return (
            f"At most {judged:,} gate records are ever judged together; of the harmless updates that flip "
            f"{say.percent(CHURNS[0])} of the answers, these let {say.percent(passes)} pass at gate.{name} "
            f"{margin:g}",
            f"Give a wider gate.{name}, or let {settle:,} be judged: by larger experiences, split.gate, "
            "gate.max_holdouts, gate.holdout_records or gate.archive_records",
        )

    def _asks_mostly(self, rates: Rates, most: int | None) -> tuple[str, str] | None:
        if not rates or rates[0][1].bound == "at most" or rates[0][1].mean <= _MOST_ASKED or most is None:
            return None
        more = self._from(most, lambda records: self._asks_at_most(records, _FEW_ASKED))
        larger = "Declare larger experiences"
        if more is not None:
            larger += f" ({more:,} records ask about at most {_FEW_ASKED:g} of 100)"
        return (
            f"With {_records(most)} an experience, {_asks(rates[0][1])} of 100 harmless updates would wait "
            "for a person",
            f"{larger}, a larger split.gate{self._eager(most)}",
        )

    def _eager(self, most: int) -> str:
        """The preset as a remedy, where these experiences are asked about less with it."""
        config = self.config
        base = GateConfig(preset=config.preset)
        given = {
            name: value
            for name in GateConfig.model_fields
            if name != "preset" and (value := getattr(config, name)) != getattr(base, name)
        }
        eager = _Declared(GateConfig(preset="eager", **given), self.gate, self.audit)
        if config.preset == "eager" or not eager._asks_at_most(most, _MOST_ASKED):
            return ", or wider margins (gate.margin and gate.learning_margin)"
        return ", or gate: {preset: eager} with its wider margins"

    def _most_judged(self, gate: int) -> int:
        """Gate or sealed records that are ever judged together, where an experience has so many."""
        config = self.config
        return config.max_holdouts * min(gate, config.holdout_records) + config.archive_records

    def _notes(self, most: int | None) -> Iterator[str]:
        config = self.config
        if not self.audit:
            yield "Nothing is sealed (split.audit is 0), so the budget is never held."
        if most is None:
            return
        first = stats.spent(config.alpha, 1)
        block = retention.records_of_block(config, retention.block_margin(config), alpha=first)
        alone = retention.records_of_block(config, config.margin, alpha=first)
        judged = self._most_judged(self.judged(most))
        if judged < block and min(self.judged(most), config.holdout_records) < alone:
            yield (
                f"No block is ever full: at most {judged:,} gate records of past experiences are judged, "
                f"and a block takes {block:,}; raise gate.max_holdouts or gate.archive_records."
            )
        if self.audit:
            together = budget.records_together(config.budget, config.alpha, config.audits)
            enough = budget.records_alone(config.budget, config.alpha)
            sealed = self.sealed(most)
            if self._most_judged(sealed) < together and min(sealed, config.holdout_records) < enough:
                yield (
                    f"The budget is never held: at most {self._most_judged(sealed):,} sealed records are "
                    f"judged, and it takes {together:,}; raise split.audit or gate.budget."
                )

    # In words.

    def _sentence(
        self, records: int | None, bound: Bound, rates: Rates, loss: float | None, halved: int | None
    ) -> str:
        if records is None or loss is None:
            return self._from_which_on()
        few = {"about": "", "at least": " or more", "at most": " or fewer"}[bound]
        lost = f"one experience may lose {_up_to(loss, bound)} unseen"
        if rates:
            churn, rate = rates[0]
            asks = f"{_asks(rate)} of 100 harmless updates that flip {say.percent(churn)} of the answers"
            lost = f"{asks} will ask you, and {lost}"
        line = f"With {_records(records)}{few} an experience, {lost}"
        if halved is not None:
            line += (
                f"; {halved:,} records would halve {'both' if rates and rates[0][1].mean >= 1 else 'that'}"
            )
        if not rates:
            line += "; no figure says how often these settings ask: holdfast gate questions gives one"
        return f"{line}."

    def _from_which_on(self) -> str:
        asks = self._from(0, lambda records: self._asks_at_most(records, _FEW_ASKED))
        single = retention.records_of_single(self.config, alpha=stats.spent(self.config.alpha, 1))
        widest = say.with_unit(max(self.config.single_margin, self.config.margin))
        lost = f"with split.gate {self.gate:g}, one experience may lose more than {widest} unseen"
        if single <= self.gate * _MOST_RECORDS:
            alone = ceil(single / self.gate)
            lost = f"from {alone:,} records on, one experience may lose at most {widest} unseen"
        if asks is not None:
            lost += (
                f", and from {asks:,} on, at most {_FEW_ASKED:g} of 100 harmless updates that flip "
                f"{say.percent(CHURNS[0])} of the answers will ask you"
            )
        return f"The trigger declares no number of records: {lost}."


def _sized(fewest: int, most: int | None) -> tuple[int | None, Bound]:
    """The records that the numbers are for, and how those of all experiences relate to them."""
    if fewest == most:
        return most, "about"
    return (fewest, "at least") if fewest > 1 else (most, "at most")


def _records(count: int) -> str:
    return f"{count:,} record{'' if count == 1 else 's'}"


def _asks(rate: Asked) -> str:
    """So many of 100, to be followed by what they are of."""
    if rate.mean < 1:
        return "fewer than 1" if rate.bound != "at least" else f"at least {rate.mean:.1f}"
    if rate.bound == "about" and rate.high - rate.low > rate.mean:
        # So few lifetimes say no more; the mean alone would look exact.
        return f"{rate.low:.0f} to {rate.high:.0f}"
    return f"{rate.bound} {rate.mean:.0f}"


def _up_to(loss: float, bound: Bound) -> str:
    at_least = "at least " if bound == "at most" else ""
    return "all of its right answers" if loss >= 1 else at_least + say.with_unit(loss)
