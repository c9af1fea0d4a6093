"""An exported network has our logits, in any format, and needs nothing of ours."""

import ast
import subprocess
import sys
from dataclasses import replace

import onnxruntime
import pytest
import torch

from pdarts_tune.config.evaluation import RECIPES
from pdarts_tune.config.serialize import to_dict
from pdarts_tune.export import main
from pdarts_tune.networks.evaluation_network import EvalNetwork, NetworkConfig
from pdarts_tune.pdarts.genotype import CellGenotype, Genotype
from pdarts_tune.pdarts.published import PUBLISHED

SMALL = CellGenotype((("sep_conv_3x3", 0), ("skip_connect", 1), ("dil_conv_5x5", 0), ("max_pool_3x3", 2)), (2, 3))
GENOTYPE = Genotype(
    SMALL, CellGenotype((("sep_conv_5x5", 1), ("skip_connect", 0), ("avg_pool_3x3", 2), ("dil_conv_3x3", 1)), (2, 3))
)
MEAN, STD = [0.2, 0.4, 0.6], [0.5, 0.25, 0.3]
IMAGES = torch.rand(5, 3, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """Weights as a study keeps them, and their logits for IMAGES."""
    torch.manual_seed(0)
    network = EvalNetwork(GENOTYPE, NetworkConfig(4, 3, 7, 32, "cifar"))
    for _ in range(3):
        network(torch.randn(8, 3, 32, 32))  # running statistics other than 0 and 1
    network.eval()
    with torch.no_grad():
        for norm in (module for module in network.modules() if isinstance(module, torch.nn.BatchNorm2d)):
            norm.weight.uniform_(0.5, 2)
            norm.bias.uniform_(-1, 1)
        mean, std = (torch.tensor(values).view(1, 3, 1, 1) for values in (MEAN, STD))
        logits = network((IMAGES - mean) / std)[0]
    saved = {"state_dict": network.state_dict(), "mean": MEAN, "std": STD, "genotype": str(GENOTYPE)}
    file = tmp_path_factory.mktemp("weights") / "trained.pt"
    torch.save(saved | {"config": to_dict(replace(RECIPES["cifar-short"], cells=3, channels=4))}, file)
    return file, logits


def export(form, output, *words):
    main(["--format", form, "--output", str(output), *map(str, words)])


def test_onnx_and_the_exported_program_give_our_logits_for_any_number_of_images(trained, tmp_path):
    file, ours = trained
    export("onnx", tmp_path / "network.onnx", "--weights", file)
    session = onnxruntime.InferenceSession(tmp_path / "network.onnx", providers=["CPUExecutionProvider"])
    export("torch", tmp_path / "network.pt2", "--weights", file)
    program = torch.export.load(tmp_path / "network.pt2").module()
    for count in (1, 2, 5):
        (logits,) = session.run(["logits"], {"images": IMAGES[:count].numpy()})
        torch.testing.assert_close(torch.from_numpy(logits), ours[:count], rtol=0, atol=1e-5)
        torch.testing.assert_close(program(IMAGES[:count]), ours[:count], rtol=0, atol=1e-5)
    assert {path.name for path in tmp_path.iterdir()} == {"network.onnx", "network.pt2"}


def test_the_python_file_needs_torch_alone_and_gives_our_logits(trained, tmp_path):
    file, ours = trained
    export("python", tmp_path / "cell.py", "--weights", file)
    source = (tmp_path / "cell.py").read_text()
    imported = {node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Import | ast.ImportFrom)}
    assert {(getattr(node, "module", None) or node.names[0].name).split(".")[0] for node in imported} == {"torch"}
    assert len(source.splitlines()) < 250
    torch.save(IMAGES, tmp_path / "images.pt")
    use = "import sys, torch; sys.path.insert(0, '.'); from cell import Network; network = Network().eval(); "
    use += "network.load_state_dict(torch.load('cell.pt', weights_only=True)); "
    use += "assert not [name for name in sys.modules if name.startswith('pdarts')]; "
    use += "torch.save(network(torch.load('images.pt')), 'logits.pt')"
    subprocess.run([sys.executable, "-I", "-c", use], cwd=tmp_path, check=True)
    torch.testing.assert_close(torch.load(tmp_path / "logits.pt"), ours, rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", ["AMOEBANET_A", "NASNET_A", "PDARTS_C10"])
def test_the_python_file_has_every_published_operation_and_the_stem_for_imagenet(name, tmp_path, monkeypatch, capsys):
    small = replace(RECIPES["imagenet-mobile-short"], cells=3, channels=4, image_size=64)
    monkeypatch.setattr("pdarts_tune.config.evaluation.RECIPES", {"small": small})
    export("python", tmp_path / "cell.py", "--genotype", name, "--recipe", "small", "--classes", "6")
    assert "logits of 3 images differ from ours by at most 0.0e+00" in capsys.readouterr().out
    names = {}
    exec((tmp_path / "cell.py").read_text(), names)
    torch.manual_seed(0)
    ours = EvalNetwork(PUBLISHED[name].genotype, NetworkConfig(4, 3, 6, 64, "imagenet"), auxiliary=False)
    theirs = names["Network"]()
    theirs.load_state_dict(ours.state_dict())
    images = torch.randn(2, 3, 64, 64)
    torch.testing.assert_close(theirs(images), ours(images)[0], rtol=0, atol=1e-5)  # in training mode too
    assert not (tmp_path / "cell.pt").exists()


def test_a_network_with_other_logits_is_not_written(trained, tmp_path, monkeypatch, capsys):
    from pdarts_tune import export as module

    monkeypatch.setattr(module, "_SOURCE", module._SOURCE.replace("images - self.mean", "images + self.mean"))
    with pytest.raises(SystemExit, match="1"):
        export("python", tmp_path / "cell.py", "--weights", trained[0])
    assert "logits differ from ours by" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_bad_input_is_one_line_and_nothing_is_written(trained, tmp_path, capsys):
    file, _ = trained
    junk, state = tmp_path / "junk.pt", tmp_path / "state.pt"
    junk.write_text("junk")
    torch.save(torch.load(file)["state_dict"], state)
    for words, match in (
        ([], "genotype: is missing, give --genotype"),
        (["--weights", junk], "junk.pt"),
        (["--weights", state], "genotype: is missing, give --genotype, which the weights do not know"),
        (["--weights", file, "--genotype", "DARTS_V2"], "weights: "),
        (["--genotype", "NO_SUCH"], "neither a file nor a published name"),
        (["--genotype", "PDARTS_C10", "--recipe", "long"], "recipe: 'long' is unknown"),
        (["--genotype", "PDARTS_C10", "--output", tmp_path / "cell.onnx"], "ends in .py"),
        (["--genotype", "PDARTS_C10", "--output", tmp_path / "absent" / "cell.py"], "cannot be written"),
    ):
        with pytest.raises(SystemExit, match="2"):
            export("python", tmp_path / "cell.py", *words)
        err = capsys.readouterr().err
        assert match in err
        assert err.count("\n") == 1, err
    assert {path.name for path in tmp_path.iterdir()} == {"junk.pt", "state.pt"}


def test_weights_of_other_code_are_exported_with_a_genotype(trained, tmp_path, capsys):
    file, _ = trained
    state = tmp_path / "state.pt"
    torch.save({f"module.{name}": value for name, value in torch.load(file)["state_dict"].items()}, state)
    export("python", tmp_path / "cell.py", "--weights", state, "--genotype", GENOTYPE)
    err = capsys.readouterr().err
    assert "do not say how their images were normalised" in err
    assert "CELLS, CHANNELS, CLASSES, IN_CHANNELS = 3, 4, 7, 3" in (tmp_path / "cell.py").read_text()
