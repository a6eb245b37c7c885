"""What a pipeline may say about its network, and what stands behind the names."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import save_file
from torchvision.models import resnet18, resnet34

from strategies.base import StrategyError
from strategies.catalog import STRATEGIES
from strategies.learning.bodies import cnn
from strategies.learning.networks import Network
from strategies.learning.state import load_any
from strategies.naive import NaiveConfig
from strategies.network_choice import Installation, NetworkChoice, install, installed, own_networks
from tests.support.network_parts import INFO, WEIGHTS, build, experience, installation

CHOICE: TypeAdapter[Any] = TypeAdapter(NetworkChoice)


@pytest.fixture(scope="module")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Installation:
    return installation(tmp_path_factory.mktemp("weights"))


@pytest.fixture(autouse=True)
def _nothing_stays_installed() -> Any:
    yield
    install(Installation())


def network(**choice: Any) -> Network:
    return Network(NaiveConfig.model_validate({"network": choice}), INFO.shape)


@pytest.mark.parametrize("name", ["mlp", "cnn", "resnet18"])
def test_a_bare_name_is_that_network_with_its_defaults(name: str) -> None:
    assert CHOICE.validate_python(name) == CHOICE.validate_python({"name": name})
    config = NaiveConfig.model_validate({"network": name})
    assert NaiveConfig.model_validate_json(config.model_dump_json()).network == config.network


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ("backbone", "a frozen backbone needs weights"),
        ("perceptron", "does not match any of the expected tags"),
        ({"name": "own"}, "of"),
        ({"name": "own", "of": "os:system"}, "should match pattern"),
        ({"name": "own", "of": "a", "function": "os:system"}, "Extra inputs"),
        ({"name": "backbone", "weights": "../secrets.pth"}, "should match pattern"),
        ({"name": "backbone", "weights": "a/b.pth"}, "should match pattern"),
        ({"name": "backbone", "weights": ".hidden"}, "should match pattern"),
        ({"name": "backbone", "weights": "a.pth", "mean": [0.5]}, "3 values each, or 1 each"),
        ({"name": "backbone", "weights": "a.pth", "mean": [float("nan")] * 3}, "finite"),
        ({"name": "backbone", "frozen": False, "deviation": [0, 1, 1]}, "greater than 0"),
        ({"name": "backbone", "frozen": False, "constructor": "os.system"}, "should match pattern"),
        ({"name": "cnn", "channels": []}, "at least 1 item"),
        ({"name": "cnn", "channels": [1]}, "greater than or equal to 2"),
        ({"name": "mlp", "dropout": 1}, "less than 1"),
    ],
)
def test_a_choice_that_cannot_work_is_refused(choice: Any, message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        CHOICE.validate_python(choice)


@pytest.mark.parametrize(
    ("choice", "shape", "fits"),
    [
        ("mlp", (6,), True),
        ("mlp", (3, 4, 5, 6), True),
        ("cnn", (6,), False),
        ("cnn", (8, 8), True),
        ("cnn", (3, 3, 9), False),
        ("cnn", (5, 4, 4), True),
        ({"name": "cnn", "channels": [4] * 5}, (1, 8, 8), False),
        ("resnet18", (1, 7, 20), False),
        ("resnet18", (4, 8, 8), True),
        ({"name": "backbone", "frozen": False}, (2, 32, 32), False),
        ({"name": "backbone", "frozen": False}, (3, 32, 32), True),
        ({"name": "backbone", "frozen": False}, (6,), False),
    ],
)
def test_a_network_says_which_shapes_it_takes(choice: Any, shape: tuple[int, ...], fits: bool) -> None:
    problem = CHOICE.validate_python(choice).problem(shape, "float32")
    assert (problem is None) == fits
    assert problem is None or f"{list(shape)}" in problem


def test_own_networks_are_read_from_a_text() -> None:
    assert own_networks("") == {}
    assert own_networks("digits-net=pkg.nets:make; b=_p:F ;") == {"digits-net": "pkg.nets:make", "b": "_p:F"}
    for text, message in (
        ("a", "not of the form module:function"),
        ("A=p:f", "small letters"),
        ("a=p", "not of the form"),
        ("a=p:f:g", "not of the form"),
        ("a=.p:f", "not of the form"),
        ("a=p..q:f", "not of the form"),
        ("a=p:f;a=q:g", "named twice"),
        ("a=p:f,b=q:g", "not of the form"),
    ):
        with pytest.raises(ValueError, match=message):
            own_networks(text)


def test_a_name_of_weights_never_leaves_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "weights"
    folder.mkdir()
    (tmp_path / "secret.pth").write_text("secret")
    (folder / "inside.pth").write_text("fine")
    (folder / "out.pth").symlink_to(tmp_path / "secret.pth")
    (folder / "in.pth").symlink_to("inside.pth")
    (folder / "sub").mkdir()
    os.mkfifo(folder / "pipe.pth")
    has = Installation(weights=folder)
    assert has.weights_file("in.pth") == folder / "inside.pth"
    for name in ("out.pth", "../secret.pth", str(tmp_path / "secret.pth"), "sub", "pipe.pth", "lost.pth", ""):
        with pytest.raises(ValueError, match="there is no file"):
            has.weights_file(name)
    with pytest.raises(ValueError, match="HOLDFAST_WEIGHTS"):
        Installation().weights_file("inside.pth")


def test_what_is_lacking_is_told_where_it_can_be_known(tmp_path: Path) -> None:
    own = CHOICE.validate_python({"name": "own", "of": "digits-net"})
    backbone = CHOICE.validate_python({"name": "backbone", "weights": "a.pth"})
    assert "it has none" in own.installation_problem(Installation())
    assert "it has other" in own.installation_problem(Installation(networks={"other": "p:f"}))
    assert own.installation_problem(Installation(networks={"digits-net": "p:f"})) is None
    assert "HOLDFAST_WEIGHTS" in backbone.installation_problem(Installation())
    assert "'a.pth'" in backbone.installation_problem(Installation(weights=tmp_path))
    assert backbone.installation_problem(Installation(weights=tmp_path / "of another machine")) is None
    assert CHOICE.validate_python("cnn").installation_problem(Installation()) is None


def test_what_is_installed_last_counts() -> None:
    install(Installation(networks={"a": "tests.support.own_networks:plain"}))
    install(Installation(networks={"b": "tests.support.own_networks:plain"}))
    assert set(installed().networks) == {"b"}
    assert network(name="own", of="b").head.width == 6
    with pytest.raises(StrategyError, match="no network of its own that is called 'a'"):
        network(name="own", of="a")


@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("no_such_package:make", "cannot be made by no_such_package:make: ModuleNotFoundError"),
        ("tests.support.own_networks:missing", "AttributeError"),
        ("tests.support.own_networks:unwilling", "cannot be made by .*: KeyError, see"),
        ("tests.support.own_networks:nothing", "gave a NoneType, no torch module"),
        ("tests.support.own_networks:prod", "cannot be made|gave a int"),
        ("tests.support.own_networks:picky", "failed: LookupError, see"),
        ("tests.support.own_networks:one_number", r"makes \[\] of 2 records; it must give \(n, width\)"),
        ("tests.support.own_networks:another_count", r"makes \[1, 6\] of 2 records"),
        ("tests.support.own_networks:pair", "makes a tuple of 2 records"),
        ("tests.support.own_networks:whole_numbers", "must be floating-point"),
    ],
)
def test_an_own_network_that_cannot_work_fails_in_words(where: str, message: str) -> None:
    install(Installation(networks={"mine": where}))
    with pytest.raises(StrategyError, match=message):
        network(name="own", of="mine")


def test_an_own_network_that_fails_while_it_learns_fails_in_words(everything: Installation) -> None:
    install(everything)
    learner = build("own", network={"name": "own", "of": "tiring"})
    with pytest.raises(StrategyError, match="network 'tiring' failed: LookupError, see"):
        learner.learn(experience(0, 0, 20))


def _broken(path: Path) -> None:
    path.write_bytes(b"no weights at all")


def _of_another_model(path: Path) -> None:
    torch.save(resnet34(weights=None).state_dict(), path)


def _of_other_classes(path: Path) -> None:
    torch.save(resnet18(weights=None, num_classes=10).state_dict(), path)


def _nested(path: Path) -> None:
    torch.save({"model": resnet18(weights=None).state_dict()}, path)


def _a_whole_module(path: Path) -> None:
    torch.save(torch.nn.Linear(1, 1), path)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (_broken, "'w.pth' cannot be read"),
        (_of_another_model, r"have and the model does not: layer1\.2\..*more\. Name the model"),
        (_of_other_classes, r"in another size: fc\.bias, fc\.weight\. .*left out of the file"),
        (_nested, "no state_dict"),
        (_a_whole_module, "'w.pth' cannot be read"),
    ],
)
def test_weights_that_do_not_fit_are_refused_in_words(write: Any, message: str, tmp_path: Path) -> None:
    write(tmp_path / "w.pth")
    install(Installation(weights=tmp_path))
    with pytest.raises(StrategyError, match=message) as caught:
        network(name="backbone", weights="w.pth")
    assert len(str(caught.value)) < 400


def test_broken_safetensors_are_refused_in_words(tmp_path: Path) -> None:
    _broken(tmp_path / "w.safetensors")
    install(Installation(weights=tmp_path))
    with pytest.raises(StrategyError, match="cannot be read"):
        network(name="backbone", weights="w.safetensors")


def test_weights_come_from_either_kind_of_file_and_need_no_classifier(tmp_path: Path) -> None:
    torch.manual_seed(3)
    state = resnet18(weights=None).state_dict()
    torch.save(state, tmp_path / "w.pth")
    save_file({k: t for k, t in state.items() if not k.startswith("fc.")}, tmp_path / "w.safetensors")
    install(Installation(weights=tmp_path))
    bodies = [network(name="backbone", weights=name).body.state_dict() for name in ("w.pth", "w.safetensors")]
    for name, tensor in bodies[0].items():
        assert torch.equal(bodies[1][name], tensor)
    assert torch.equal(bodies[0]["model.conv1.weight"], state["conv1.weight"])
    assert not any("fc" in name for name in bodies[0])


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"constructor": "resnet_of_nobody"}, "no classification model 'resnet_of_nobody'"),
        ({"constructor": "squeezenet1_0"}, "no last linear layer"),
        ({"constructor": "vit_b_16", "size": 32}, r"does not take records of shape \[1, 8, 8\]"),
    ],
)
def test_models_of_torchvision_that_cannot_be_used_are_refused(choice: dict[str, Any], message: str) -> None:
    with pytest.raises(StrategyError, match=message):
        network(name="backbone", frozen=False, **choice)


def test_a_checkpoint_of_a_network_that_this_installation_lost_says_so(
    everything: Installation, tmp_path: Path
) -> None:
    install(everything)
    build("own").save(tmp_path / "own")
    build("backbone, frozen").save(tmp_path / "backbone")
    install(Installation())
    with pytest.raises(StrategyError, match="HOLDFAST_NETWORKS"):
        load_any(tmp_path / "own", STRATEGIES)
    with pytest.raises(StrategyError, match="HOLDFAST_WEIGHTS"):
        load_any(tmp_path / "backbone", STRATEGIES)


def test_a_group_has_more_than_one_value_even_at_one_place() -> None:
    body = cnn(1, (8, 8, 8, 8), norm="group").eval()
    features = body(torch.rand(1, 1, 8, 8))
    assert features.shape == (1, 8)
    assert len(set(features[0].tolist())) > 2


def test_a_backbone_takes_grey_images_as_three_equal_channels(everything: Installation) -> None:
    install(everything)
    grey = torch.rand(2, 1, 8, 8)
    one = Network(
        NaiveConfig.model_validate({"network": {"name": "backbone", "weights": WEIGHTS}}), (1, 8, 8)
    )
    three = Network(one._config, (3, 8, 8))
    assert torch.equal(one.prepare(grey), three.prepare(grey.expand(-1, 3, -1, -1)))


def test_stored_images_of_either_type_are_the_same_to_a_backbone(everything: Installation) -> None:
    install(everything)
    config = NaiveConfig.model_validate({"network": {"name": "backbone", "weights": WEIGHTS}})
    bytes_ = torch.randint(256, (2, 1, 8, 8), dtype=torch.uint8)
    stored = Network(config, (1, 8, 8), "uint8")
    assert torch.equal(stored.prepare(bytes_), stored.prepare(bytes_.float()))
    torch.testing.assert_close(stored.prepare(bytes_), Network(config, (1, 8, 8)).prepare(bytes_ / 255))
