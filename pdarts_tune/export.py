"""A cell's network for other projects: as ONNX, as an exported program of PyTorch, or as one Python file without imports of ours.

    python -m pdarts_tune.export --weights results/depth_gap/weights/TRIAL.pt --format onnx
    python -m pdarts_tune.export --genotype PDARTS_C10 --format python --output pdarts_c10.py

The network takes images of any number (N, channels, height, width), scaled to [0, 1], and gives logits (N, classes). It normalises
them as the images that trained its weights were. Before the file is written its logits are compared with ours.
"""

from __future__ import annotations

import inspect
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any, Literal

from pdarts_tune.config.command_line import parse
from pdarts_tune.config.serialize import ConfigError

if TYPE_CHECKING:
    import torch

    from pdarts_tune.evaluation.trained import TrainedNetwork

SUFFIXES = {"onnx": ".onnx", "torch": ".pt2", "python": ".py"}
TOLERANCE = 1e-5  # of logits, times the largest of ours where that is above 1


@dataclass(frozen=True)
class Arguments:
    """What to export. Weights that a study or an evaluation kept know their genotype, size and normalisation."""

    format: Literal["onnx", "torch", "python"]
    """onnx (needs the extra `onnx`), torch (torch.export) or python (one file; with weights, their .pt file beside it)."""
    genotype: str | None = None
    """One: a published name (PDARTS_C10), a text, a file or random:SEED."""
    weights: Path | None = None
    """A state dict of ours or of DARTS-family code. Without it weights are drawn from --seed."""
    output: Path | None = None
    """The file; without it, the weights' or the genotype's name in this folder."""
    recipe: str = "cifar"
    """Whose network it is: cifar, cifar-short, imagenet-mobile, ... Weights know their number of cells and channels."""
    classes: int | None = None
    """Without weights: 10, or 1000 with the stem for ImageNet."""
    seed: int = 0


def main(arguments: Sequence[str] | None = None) -> None:
    """Exits with 0, 1 (the exported network gives other logits) or 2 (bad input)."""
    settings = parse(Arguments, arguments, prog="python -m pdarts_tune.export", description=__doc__ or "")
    try:
        network = _build(settings)
        suffix = SUFFIXES[settings.format]
        name = settings.weights.stem if settings.weights else network.network.genotype.genotype_id
        output = settings.output or Path(name + suffix)
        if output.suffix != suffix:
            raise ConfigError(f"output: {output} is wrong, a file of format {settings.format} ends in {suffix}")
        difference = export(network, output, settings.format, settings.weights is not None)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except ArithmeticError as error:
        print(f"failed: {error}", file=sys.stderr)
        sys.exit(1)
    print(f"{output}: logits of 3 images differ from ours by at most {difference:.1e}")


def _build(settings: Arguments) -> TrainedNetwork:
    """The network in evaluation mode, its cells evaluated in plain PyTorch."""
    import torch

    from pdarts_tune.config.evaluation import find_recipe
    from pdarts_tune.evaluation.compare import find_all, find_origin, load_weights
    from pdarts_tune.evaluation.trained import TrainedNetwork, usual_side
    from pdarts_tune.networks.evaluation_network import EvalNetwork, NetworkConfig

    origin = find_origin(settings.weights) if settings.weights else None
    if settings.genotype is None and origin is None:
        raise ConfigError("genotype: is missing, give --genotype" + (", which the weights do not know" if settings.weights else ""))
    genotypes = [origin[0]] if settings.genotype is None and origin else [*find_all([str(settings.genotype)], None)[0].values()]
    if len(genotypes) > 1:
        raise ConfigError(f"genotype: {settings.genotype} holds {len(genotypes)} genotypes, export one of them")
    config = replace(origin[1] if origin else find_recipe(settings.recipe), cell_evaluation="plain")
    try:
        if settings.weights:
            saved, _ = load_weights(settings.weights)
            if "mean" not in saved:
                print("note: the weights do not say how their images were normalised; this network does not", file=sys.stderr)
        else:
            classes = settings.classes or (10 if config.stem == "cifar" else 1000)
            shape = NetworkConfig(config.channels, config.cells, classes, usual_side(config, config.stem), config.stem)
            torch.manual_seed(settings.seed)
            saved = EvalNetwork(genotypes[0], shape, auxiliary=False).state_dict()
        return TrainedNetwork(saved, genotypes[0], config)
    except (ValueError, RuntimeError) as error:
        raise ConfigError(f"weights: {settings.weights}: {str(error).splitlines()[0]}") from None


def export(network: TrainedNetwork, output: Path, form: str, with_weights: bool) -> float:
    """Writes the file, whole or not at all, and returns the largest difference of its logits from ours.

    Raises:
        ConfigError: the file cannot be written; a package is missing.
        ArithmeticError: its logits differ from ours by more than TOLERANCE.
    """
    import torch

    generator, shape = torch.Generator().manual_seed(0), network.network.config
    images = torch.rand(3, shape.in_channels, shape.image_size, shape.image_size, generator=generator)
    try:
        with tempfile.TemporaryDirectory(dir=output.parent, prefix=".export-") as folder, torch.no_grad():
            part = Path(folder) / output.name
            state = part.with_suffix(".pt") if with_weights and form == "python" else None
            write = {"onnx": _write_onnx, "torch": _write_program, "python": _write_python}[form]
            logits, ours = write(network, part, images), network(images)
            difference = float((logits - ours).abs().max())
            if not difference <= TOLERANCE * max(1.0, float(ours.abs().max())):
                raise ArithmeticError(f"the exported network's logits differ from ours by {difference:.1e}; nothing is written")
            if state is not None:
                torch.save(network.network.state_dict(), state)
                state.replace(output.with_suffix(".pt"))
            part.replace(output)
    except OSError as error:
        raise ConfigError(f"output: {output} cannot be written ({error.strerror})") from None
    return difference


def _write_program(network: TrainedNetwork, file: Path, images: torch.Tensor) -> torch.Tensor:
    import torch

    program = torch.export.export(network, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    torch.export.save(program, file)
    return torch.export.load(file).module()(images)


def _write_onnx(network: TrainedNetwork, file: Path, images: torch.Tensor) -> torch.Tensor:
    import torch

    try:
        import onnxruntime
        import onnxscript  # noqa: F401  (PyTorch's exporter needs it)
    except ImportError as error:
        raise ConfigError(f"format: onnx needs {error.name}, which pip install pdarts-tune[onnx] brings") from None
    shapes = ({0: torch.export.Dim("batch")},)
    options: dict[str, Any] = {"dynamo": True, "external_data": False, "verbose": False, "dynamic_shapes": shapes}
    torch.onnx.export(network, (images,), file, input_names=["images"], output_names=["logits"], **options)
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"images": images.numpy()})[0])


def _write_python(network: TrainedNetwork, file: Path, images: torch.Tensor) -> torch.Tensor:
    file.write_text(write_source(network, file.stem))
    names: dict[str, type[torch.nn.Module]] = {}
    exec(compile(file.read_text(), file.name, "exec"), names)  # noqa: S102  (the text is ours)
    copy = names["Network"]().eval()
    copy.load_state_dict(network.network.state_dict())
    return copy(images)


def write_source(network: TrainedNetwork, name: str) -> str:
    """The Python file: operations, cells and their stack as they stand in networks/, without our kernels."""
    from pdarts_tune.networks import operations, stacked_cells
    from pdarts_tune.networks.stacked_cells import ALL_OPERATIONS

    genotype, shape = network.network.genotype, network.network.config
    cells = {"normal": genotype.normal, "reduce": genotype.reduce}
    classes = ("ReLUConvBN", "FactorizedReduce", "PoolBN", "SepConv", "DilConv", "Conv7x1And1x7")
    parts = [getattr(operations, part) for part in (*classes, "_halve", "shift", "_depthwise", "_pool")]
    parts += [stacked_cells.conv_bn, stacked_cells.StackedCells, stacked_cells.DerivedCell]
    used = sorted({name for cell in cells.values() for name, _ in cell.edges})
    moments = {part: tuple(round(float(value), 8) for value in getattr(network, part).flatten()) for part in ("mean", "std")}
    return Template(_SOURCE).substitute(
        name=name,
        genotype=genotype,
        **{cell_type: (cell.edges, cell.concat) for cell_type, cell in cells.items()},
        definitions="\n\n".join(inspect.getsource(part) for part in parts).rstrip(),
        operations="".join(inspect.getsource(ALL_OPERATIONS[operation]) for operation in used),
        stem=shape.stem,
        cells=shape.cells,
        channels=shape.channels,
        classes=shape.num_classes,
        in_channels=shape.in_channels,
        size=shape.image_size,
        **moments,
    )


_SOURCE = '''\
"""An evaluation network of P-DARTS' family in plain PyTorch, which pdarts_tune.export wrote.

    network = Network().eval()
    network.load_state_dict(torch.load("$name.pt", weights_only=True))
    logits = network(images)  # (N, $in_channels, $size, $size), scaled to [0, 1], to (N, $classes)

$genotype
Without drop path and the auxiliary head, which papers train with.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

NORMAL = $normal  # two (operation, source state) a node, and the states that are joined
REDUCE = $reduce
CELLS, CHANNELS, CLASSES, IN_CHANNELS = $cells, $channels, $classes, $in_channels
MEAN, STD = $mean, $std  # of the training images, per channel


$definitions


ALL_OPERATIONS = {
$operations}


class Network(StackedCells):
    def __init__(self, classes: int = CLASSES) -> None:
        super().__init__()
        self.register_buffer("mean", torch.tensor(MEAN).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(STD).view(1, -1, 1, 1), persistent=False)
        self.stack("$stem", IN_CHANNELS, CHANNELS, CELLS, classes)

    def make_cell(self, before2: int, before1: int, channels: int, reduction: bool, after_reduction: bool):
        edges, concat = REDUCE if reduction else NORMAL
        return DerivedCell(edges, concat, before2, before1, channels, reduction, after_reduction), channels * len(concat)

    def forward(self, images: Tensor) -> Tensor:
        before2, before1 = self.read((images - self.mean) / self.std)
        for cell in self.cells:
            before2, before1 = before1, cell(before2, before1)
        return self.classifier(before1.mean(dim=(2, 3)))
'''


if __name__ == "__main__":
    main()
