"""The networks that a strategy can train, with their settings. Imports no torch.

Every network scales raw features, computes features from them in a body, and ends in a head with one row for
each class that has appeared. The choice here is the body.

A pipeline only names a network. `Installation` maps the name to code or weights, which no pipeline can set.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


@dataclass(frozen=True)
class Installation:
    """Networks and weight files that the operator of an installation adds for pipelines to name."""

    networks: Mapping[str, str] = field(default_factory=dict)
    """Name -> `module:function`. The function takes the shape of a record, and gives a `torch.nn.Module`
    from scaled records (n, *shape), float32, to features (n, width)."""
    weights: Path | None = None
    """The folder of weight files."""

    def function(self, name: str) -> str:
        """The `module:function` that makes the network of that name.

        Raises:
            ValueError: there is none.
        """
        if name not in self.networks:
            known = ", ".join(sorted(self.networks)) or "none"
            raise ValueError(
                f"this installation has no network of its own that is called {name!r} (it has {known}); "
                "whoever runs it can name one in HOLDFAST_NETWORKS"
            )
        return self.networks[name]

    def weights_file(self, name: str) -> Path:
        """The file of that name in the folder of weights.

        Raises:
            ValueError: there is no folder, no such file in it, or the name leads out of it.
        """
        if self.weights is None:
            raise ValueError(
                f"the weights {name!r} are to come from a folder of this installation, and it has none; "
                "whoever runs it can name one in HOLDFAST_WEIGHTS"
            )
        folder = self.weights.resolve()
        path = (folder / name).resolve()
        # A link inside the folder may stand for a file inside it, and for nothing else.
        if not path.is_file() or not path.is_relative_to(folder):
            raise ValueError(f"there is no file {name!r} in the folder that HOLDFAST_WEIGHTS names")
        return path


_installed = Installation()


def install(installation: Installation) -> None:
    """Set the installation of this process, in place of the one before."""
    global _installed
    _installed = installation


def installed() -> Installation:
    """The installation that `install` set; an empty one before."""
    return _installed


def own_networks(text: str) -> dict[str, str]:
    """Parse names and functions out of `name=module:function;other=module:function`.

    Raises:
        ValueError: it is written in another way.
    """
    found: dict[str, str] = {}
    for entry in filter(None, (part.strip() for part in text.split(";"))):
        name, _, function = (part.strip() for part in entry.partition("="))
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,62}", name):
            raise ValueError(f"{entry!r} does not begin with a name of small letters, digits and -, then =")
        if not re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", function):
            raise ValueError(f"network {name!r}: {function!r} is not of the form module:function")
        if name in found:
            raise ValueError(f"network {name!r} is named twice")
        found[name] = function
    return found


class _Choice(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    def problem(self, shape: Sequence[int], dtype: str) -> str | None:
        """Why this network cannot learn such records, on any installation; None: it can."""
        return None

    def installation_problem(self, installation: Installation) -> str | None:
        """Why this installation cannot build the network; None: it can, as far as this machine sees."""
        return None


def _image_problem(shape: Sequence[int], *, name: str, smallest: int) -> str | None:
    if len(shape) in (2, 3) and min(shape[-2:]) >= smallest:
        return None
    size = f", of {smallest} pixels each way at least" if smallest > 1 else ""
    return (
        f"network {name} takes images of shape (channels, height, width) or (height, width){size}; "
        f"the records have shape {list(shape)}"
    )


class MlpChoice(_Choice):
    """A perceptron with the strategy's `hidden` layers and ReLU; any shape of records is flattened."""

    name: Literal["mlp"] = "mlp"
    dropout: float = Field(
        0.0, ge=0, lt=1, description="Share of the hidden units that a step leaves out, after each layer."
    )
    norm: Literal["none", "layer"] = Field(
        "none", description="layer: each hidden layer's sums are normalised a record; steadies deep ones."
    )


class CnnChoice(_Choice):
    """Blocks of two 3x3 convolutions with ReLU, each halving the image; then the mean over positions."""

    name: Literal["cnn"] = "cnn"
    channels: tuple[Annotated[int, Field(ge=2, le=65536)], ...] = Field(
        (32, 64, 128), min_length=1, max_length=8, description="Channels of each block."
    )
    norm: Literal["group", "batch", "none"] = Field(
        "group",
        description="group: normalised a record, so it cannot drift. batch: by statistics that follow "
        "the newest records, which is a way to forget.",
    )

    def problem(self, shape: Sequence[int], dtype: str) -> str | None:
        return _image_problem(shape, name=self.name, smallest=2 ** (len(self.channels) - 1))


class Resnet18Choice(_Choice):
    """ResNet-18 for small images: a 3x3 stem without pooling (He et al., arXiv:1512.03385, section 4.2)."""

    name: Literal["resnet18"] = "resnet18"

    def problem(self, shape: Sequence[int], dtype: str) -> str | None:
        return _image_problem(shape, name=self.name, smallest=8)


class BackboneChoice(_Choice):
    """A torchvision classifier without its last layer, its weights from a file of this installation."""

    name: Literal["backbone"] = "backbone"
    constructor: str = Field(
        "resnet18",
        pattern=r"^[a-z][a-z0-9_]{0,63}$",
        description="A classification model of torchvision, such as resnet18 or vit_b_16.",
    )
    weights: str | None = Field(
        None,
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,127}$",
        description="File in the folder that HOLDFAST_WEIGHTS names (.pth or .safetensors); "
        "unset draws weights, for which frozen must be false.",
    )
    frozen: bool = Field(
        True,
        description="true: the backbone stays as it is, and each record passes it once an experience; "
        "false: it is trained with the head.",
    )
    size: Annotated[int, Field(ge=8, le=1024)] | None = Field(
        None, description="Height and width that images are resized to first; unset leaves them."
    )
    mean: tuple[Annotated[float, Field(allow_inf_nan=False)], ...] = Field(
        (0.485, 0.456, 0.406), description="Taken from each channel of an image in 0 to 1; 3 or 1 values."
    )
    deviation: tuple[Annotated[float, Field(gt=0, allow_inf_nan=False)], ...] = Field(
        (0.229, 0.224, 0.225), description="Each channel is divided by it then; as many values as mean."
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.frozen and self.weights is None:
            raise ValueError("a frozen backbone needs weights; name their file, or set frozen to false")
        if len(self.mean) != len(self.deviation) or len(self.mean) not in (1, 3):
            raise ValueError("mean and deviation take 3 values each, or 1 each")
        return self

    def problem(self, shape: Sequence[int], dtype: str) -> str | None:
        if len(shape) == 3 and shape[0] not in (1, 3):
            return f"network backbone takes images of 1 or 3 channels; the records have shape {list(shape)}"
        return _image_problem(shape, name=self.name, smallest=1)

    def installation_problem(self, installation: Installation) -> str | None:
        elsewhere = installation.weights is not None and not installation.weights.is_dir()
        if self.weights is None or elsewhere:
            # A folder that this machine does not see may well be seen by those that train.
            return None
        try:
            installation.weights_file(self.weights)
        except ValueError as error:
            return str(error)
        return None


class OwnChoice(_Choice):
    """A network of this installation's own; HOLDFAST_NETWORKS says which function makes it."""

    name: Literal["own"] = "own"
    of: str = Field(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$", description="Its name in HOLDFAST_NETWORKS.")

    def installation_problem(self, installation: Installation) -> str | None:
        try:
            installation.function(self.of)
        except ValueError as error:
            return str(error)
        return None


def _with_name(given: Any) -> Any:
    """A bare name is that network with its defaults."""
    return {"name": given} if isinstance(given, str) else given


NetworkChoice = Annotated[
    MlpChoice | CnnChoice | Resnet18Choice | BackboneChoice | OwnChoice,
    Field(discriminator="name"),
    BeforeValidator(_with_name),
]
