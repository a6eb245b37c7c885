"""The networks that a strategy can train, and what each takes. Reading this needs no torch.

Every network is a scaling of raw features, a body that makes features of them, and a head with a row a class
that grows as classes appear. What is chosen here is the body.
"""

import re
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

Width = Annotated[int, Field(ge=1, le=65536)]


class _Choice(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    def misfit(self, shape: Sequence[int], dtype: str) -> str | None:
        """Why records of that shape cannot be learnt by this network; None where they can."""
        return None


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
    """Blocks of two 3x3 convolutions with ReLU, each halving the image; then the mean over places."""

    name: Literal["cnn"] = "cnn"
    channels: tuple[Width, ...] = Field(
        (32, 64, 128), min_length=1, max_length=8, description="Channels of each block."
    )
    norm: Literal["group", "batch", "none"] = Field(
        "group",
        description="group: normalised a record, so it cannot drift. batch: by statistics that follow "
        "the newest records, which is a way to forget.",
    )

    def misfit(self, shape: Sequence[int], dtype: str) -> str | None:
        smallest = 2 ** (len(self.channels) - 1)
        if len(shape) != 3 or min(shape[1:]) < smallest:
            return (
                f"network cnn with {len(self.channels)} blocks takes images of shape (channels, height, "
                f"width) of {smallest} pixels at least; the records have shape {list(shape)}"
            )
        return None


class Resnet18Choice(_Choice):
    """ResNet-18 for small images: a 3x3 stem without pooling (He et al., arXiv:1512.03385, section 4.2)."""

    name: Literal["resnet18"] = "resnet18"

    def misfit(self, shape: Sequence[int], dtype: str) -> str | None:
        if len(shape) != 3 or min(shape[1:]) < 8:
            return (
                "network resnet18 takes images of shape (channels, height, width) of 8 pixels at least; "
                f"the records have shape {list(shape)}"
            )
        return None


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
    mean: tuple[float, ...] = Field(
        (0.485, 0.456, 0.406), description="Taken from each channel of an image in 0 to 1; 3 or 1 values."
    )
    deviation: tuple[Annotated[float, Field(gt=0)], ...] = Field(
        (0.229, 0.224, 0.225), description="Each channel is divided by it then; as many values as mean."
    )

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.frozen and self.weights is None:
            raise ValueError("a frozen backbone needs weights; name their file, or set frozen to false")
        if len(self.mean) != len(self.deviation) or len(self.mean) not in (1, 3):
            raise ValueError("mean and deviation take 3 values each, or 1 each")
        return self

    def misfit(self, shape: Sequence[int], dtype: str) -> str | None:
        if len(shape) != 3 or shape[0] not in (1, 3):
            return (
                "network backbone takes images of shape (3, height, width), or (1, height, width), which is "
                f"repeated; the records have shape {list(shape)}"
            )
        return None


class OwnChoice(_Choice):
    """A network of this installation's own; HOLDFAST_NETWORKS says which function makes it."""

    name: Literal["own"] = "own"
    of: str = Field(
        pattern=r"^[a-z0-9][a-z0-9-]{0,62}$", description="Its name in HOLDFAST_NETWORKS of the service."
    )

    def misfit(self, shape: Sequence[int], dtype: str) -> str | None:
        if self.of not in _own:
            known = ", ".join(sorted(_own)) or "none"
            return (
                f"this installation has no network of its own that is called {self.of!r} (it has {known}); "
                "whoever runs it can name one in HOLDFAST_NETWORKS"
            )
        return None


def _with_name(given: Any) -> Any:
    """A bare name is that network with its defaults."""
    return {"name": given} if isinstance(given, str) else given


NetworkChoice = Annotated[
    MlpChoice | CnnChoice | Resnet18Choice | BackboneChoice | OwnChoice,
    Field(discriminator="name"),
    BeforeValidator(_with_name),
]

_own: dict[str, str] = {}


def allow_own(networks: Mapping[str, str]) -> None:
    """Make known which functions make this installation's own networks; what was known before is not.

    Args:
        networks: name -> `module:function`. The function takes the shape of a record, and gives a
            `torch.nn.Module` from scaled records (n, *shape), float32, to features (n, width).

    Raises:
        ValueError: a name or a function is written in another way.
    """
    for name, function in networks.items():
        if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,62}", name):
            raise ValueError(f"network {name!r}: a name is of small letters, digits and -")
        if not re.fullmatch(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*", function):
            raise ValueError(f"network {name!r}: {function!r} is not of the form module:function")
    _own.clear()
    _own.update(networks)


def own(name: str) -> str:
    """The `module:function` that makes the network of that name.

    Raises:
        KeyError: there is none.
    """
    return _own[name]
