"""The rule for commit subjects, as the commit-msg hook and the tests apply it.

`python -m tests.support.commit_subjects FILE` checks the message in a file, as git hands it to the hook. Only
the standard library is imported, so that a commit does not wait for it.
"""

import re
import sys
from pathlib import Path

LONGEST = 72
"""Characters of a subject: what `git log --oneline` and review pages show without cutting it."""
RULE_HOLDS_AFTER = "752424e290dbc0ccd31ffd7e6ab8cd4a5cac4c85"
"""The last commit that was made before the rule."""


def subject_of(message: str) -> str:
    """The subject as git reads it: the first paragraph as one line, without the comments of the editor."""
    lines = [line.rstrip() for line in message.splitlines() if not line.startswith("#")]
    return " ".join("\n".join(lines).strip().split("\n\n")[0].split())


def problem(subject: str) -> str | None:
    """What is wrong with a subject, with what to do about it; None: nothing.

    The marks of `git commit --fixup` do not count: they are gone once the commits are squashed.
    """
    text = re.sub(r"^((fixup|squash|amend)! )+", "", subject)
    if not text:
        return "The commit message has no subject: say in its first line what the commit does."
    if len(text) > LONGEST:
        return (
            f"The subject has {len(text)} characters, and {LONGEST} are allowed: {text!r}. "
            "Name one thing there, and give the reason after a blank line."
        )
    return None


def main(arguments: list[str]) -> int:
    """Check the message in the file that is named; the exit status."""
    if len(arguments) != 1:
        print("usage: python -m tests.support.commit_subjects FILE", file=sys.stderr)
        return 2
    wrong = problem(subject_of(Path(arguments[0]).read_text(encoding="utf-8")))
    if wrong:
        print(wrong, file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
