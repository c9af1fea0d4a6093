"""Training repeats, resumes bit for bit, keeps the test images apart, and learns."""

import dataclasses
import io
import math
from functools import partial

import pytest
import torch

from images import write_image_set
from pdarts_tune.config.evaluation import EvalConfig
from pdarts_tune.config.serialize import ConfigError
from pdarts_tune.data.batches import Workers
from pdarts_tune.data.datasets import load_dataset
from pdarts_tune.evaluation.training import Evaluation, autocast
from pdarts_tune.networks import cost
from pdarts_tune.networks.cost import network_cost
from pdarts_tune.pdarts.genotype import CellGenotype, Genotype

CPU = torch.device("cpu")
NORMAL = CellGenotype(
    tuple(zip(("sep_conv_3x3", "skip_connect", "dil_conv_3x3", "max_pool_3x3") * 2, (0, 1, 0, 2, 1, 3, 2, 4), strict=True))
)
GENOTYPE = Genotype(NORMAL, NORMAL)
TINY = EvalConfig(
    recipe="tiny",
    data="digits",
    train_images=80,
    test_images=30,
    validation_fraction=0.25,
    cells=3,
    channels=4,
    epochs=3,
    batch_size=16,
    cutout=2,
)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def without_time(records):
    return [dataclasses.replace(record, seconds=0.0) for record in records]


def saved(evaluation):
    """The state after a round trip through a file, as a checkpoint makes it."""
    buffer = io.BytesIO()
    torch.save(evaluation.state_dict(), buffer)
    buffer.seek(0)
    return torch.load(buffer, weights_only=True)


def same_weights(first, second):
    ours, theirs = first.network.state_dict(), second.network.state_dict()
    return all(torch.equal(ours[name], theirs[name]) for name in ours)


def trained(config=TINY):
    evaluation = Evaluation(GENOTYPE, config, CPU)
    list(evaluation.epochs())
    return evaluation


@pytest.mark.parametrize("stop", [1, 2, 3])
def test_a_resumed_training_equals_an_uninterrupted_one_bit_for_bit(stop):
    whole = trained()
    first = Evaluation(GENOTYPE, TINY, CPU)
    for _, _ in zip(range(stop), first.epochs(), strict=False):
        pass
    torch.manual_seed(12345)
    second = Evaluation(GENOTYPE, TINY, CPU)
    second.load_state_dict(saved(first))
    rest = list(second.epochs())
    assert [record.epoch for record in rest] == list(range(stop, 3))
    assert without_time(second.records) == without_time(whole.records)
    assert same_weights(second, whole)
    assert second.test() == whole.test()


def test_the_same_seed_gives_the_same_training_and_another_seed_another():
    torch.manual_seed(1)
    first = trained()
    torch.manual_seed(2)
    assert same_weights(first, trained())
    other = trained(dataclasses.replace(TINY, seed=1))
    assert not same_weights(first, other)
    assert torch.equal(first.dataset.test.images, other.dataset.test.images)
    assert torch.equal(first.validation_batches.part.images, other.validation_batches.part.images)


def test_training_leaves_the_global_generator_alone():
    before = torch.get_rng_state()
    trained().test()
    assert torch.equal(before, torch.get_rng_state())


def test_training_validation_and_test_images_are_apart_and_complete():
    evaluation = Evaluation(GENOTYPE, TINY, CPU)
    train, validation, test = (
        {image.numpy().tobytes() for image in images}
        for images in (evaluation.batches.part.images, evaluation.validation_batches.part.images, evaluation.dataset.test.images)
    )
    assert (len(train), len(validation), len(test)) == (60, 20, 30)
    assert not train & validation
    assert not (train | validation) & test
    assert train | validation == {image.numpy().tobytes() for image in evaluation.dataset.train.images}


def test_without_a_validation_part_all_training_images_train():
    evaluation = Evaluation(GENOTYPE, dataclasses.replace(TINY, validation_fraction=0.0, epochs=1), CPU)
    assert len(evaluation.batches.part) == 80
    (record,) = evaluation.epochs()
    assert math.isnan(record.validation_accuracy)


def test_test_images_play_no_part_in_training(tmp_path):
    config = dataclasses.replace(TINY, data=write_image_set(tmp_path), train_images=None, test_images=None, epochs=1)
    first = trained(config)
    write_image_set(tmp_path, test=40, test_seed=2)
    second = trained(config)
    assert same_weights(first, second)
    assert without_time(first.records) == without_time(second.records)
    assert len(second.test().correct) == 40


def test_testing_before_the_last_epoch_is_refused():
    evaluation = Evaluation(GENOTYPE, TINY, CPU)
    next(evaluation.epochs())
    with pytest.raises(ValueError, match="only 1 of 3 epochs are trained"):
        evaluation.test()


def test_the_result_agrees_with_each_test_image_in_file_order():
    evaluation = trained()
    result = evaluation.test()
    dataset = load_dataset(TINY)
    images = (dataset.test.images.double() / 255 - dataset.mean[0]) / dataset.std[0]
    with torch.no_grad():
        logits, _ = evaluation.network.double().eval()(images)
    expected = (logits.argmax(dim=1) == dataset.test.labels).tolist()
    assert result.correct == expected
    assert result.accuracy == pytest.approx(sum(expected) / 30, abs=1e-12)
    first_five = (logits.topk(5).indices == dataset.test.labels[:, None]).any(dim=1).double().mean().item()
    assert result.top5_accuracy == pytest.approx(first_five, abs=1e-12)
    assert result.loss == pytest.approx(torch.nn.functional.cross_entropy(logits, dataset.test.labels).item(), rel=1e-5)
    cost = network_cost(GENOTYPE, evaluation.network_config)
    assert (result.params, result.macs) == (cost.params, cost.macs)


def test_rates_follow_the_cosine_and_drop_path_rises_linearly():
    evaluation = Evaluation(GENOTYPE, dataclasses.replace(TINY, epochs=4, drop_path=0.4, train_images=40), CPU)
    seen = [(record.learning_rate, evaluation.network.drop_path) for record in evaluation.epochs()]
    rates = [0.025 * (1 + math.cos(math.pi * epoch / 4)) / 2 for epoch in range(4)]
    assert [rate for rate, _ in seen] == pytest.approx(rates, rel=1e-12)
    assert [drop for _, drop in seen] == pytest.approx([0.0, 0.1, 0.2, 0.3])


def test_the_auxiliary_head_trains_only_if_it_has_weight():
    head = [name for name, _ in trained().network.named_parameters() if name.startswith("auxiliary_head")]
    assert head
    without = trained(dataclasses.replace(TINY, auxiliary_weight=0.0, epochs=1))
    assert without.network.auxiliary_head is None


def test_one_step_equals_the_textbook_update():
    config = dataclasses.replace(TINY, epochs=1, batch_size=60, drop_path=0.0, gradient_clip=0.05)
    evaluation = Evaluation(GENOTYPE, config, CPU)
    reference = Evaluation(GENOTYPE, config, CPU)
    ((images, labels),) = reference.batches.epoch(reference.generators["batches"])
    logits, auxiliary = reference.network.train()(images)
    loss = torch.nn.functional.cross_entropy
    (loss(logits, labels) + 0.4 * loss(auxiliary, labels)).backward()
    parameters = list(reference.network.parameters())
    norm = torch.stack([parameter.grad.norm() for parameter in parameters]).norm()
    assert norm > 0.05
    list(evaluation.epochs())
    with torch.no_grad():
        for parameter, actual in zip(parameters, evaluation.network.parameters(), strict=True):
            step = parameter.grad * 0.05 / norm + config.weight_decay * parameter
            torch.testing.assert_close(actual, parameter - 0.025 * step, rtol=1e-4, atol=1e-7)


def test_a_loss_that_is_not_finite_names_epoch_and_step():
    evaluation = Evaluation(GENOTYPE, TINY, CPU)
    epochs = evaluation.epochs()
    next(epochs)
    with torch.no_grad():
        evaluation.network.classifier.bias[0] = math.nan
    with pytest.raises(FloatingPointError, match="epoch 1, step 0: the training loss is nan"):
        next(epochs)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("name", ["classifier.bias", "cells.0.preprocess0.bn.running_var"])
def test_a_training_whose_last_step_leaves_weights_that_are_not_finite_ends_in_an_error(monkeypatch, value, name):
    """All losses are finite: what the last step did only a further batch would show, and there is none."""
    evaluation = Evaluation(GENOTYPE, dataclasses.replace(TINY, epochs=1, validation_fraction=0.0), CPU)
    train = evaluation._train

    def train_badly(epoch):
        outcome = train(epoch)
        evaluation.network.state_dict()[name].view(-1)[0] = value
        return outcome

    monkeypatch.setattr(evaluation, "_train", train_badly)
    with pytest.raises(FloatingPointError, match=f"epoch 0: {name} is not finite after the last step"):
        list(evaluation.epochs())


def test_images_whose_loss_is_not_finite_have_no_accuracy(monkeypatch):
    evaluation = Evaluation(GENOTYPE, dataclasses.replace(TINY, epochs=1), CPU)
    list(evaluation.epochs())
    forward, calls = evaluation.network.forward, []

    def overflow(images):
        logits, auxiliary = forward(images)
        calls.append(len(images))
        return (logits * math.nan if len(calls) == 1 else logits), auxiliary

    monkeypatch.setattr(evaluation.network, "forward", overflow)
    with pytest.raises(FloatingPointError, match="test: the loss of 16 of 30 images is not finite"):
        evaluation.test()
    calls.clear()
    evaluation.config = dataclasses.replace(TINY, epochs=2)
    monkeypatch.setattr(evaluation, "_train", lambda _: (1.0, 0.5))
    with pytest.raises(FloatingPointError, match="epoch 1, validation: the loss of 16 of 20 images is not finite"):
        list(evaluation.epochs())


def test_a_state_of_another_configuration_or_genotype_is_refused():
    state = saved(Evaluation(GENOTYPE, TINY, CPU))
    with pytest.raises(ValueError, match="the checkpoint is of config_id"):
        Evaluation(GENOTYPE, dataclasses.replace(TINY, seed=9), CPU).load_state_dict(state)
    edges = (("sep_conv_5x5", 0), *NORMAL.edges[1:])
    with pytest.raises(ValueError, match="the checkpoint is of genotype"):
        Evaluation(Genotype(CellGenotype(edges), NORMAL), TINY, CPU).load_state_dict(state)


def test_the_labels_are_smoothed_in_both_heads():
    config = dataclasses.replace(TINY, epochs=1, batch_size=60, drop_path=0.0, label_smoothing=0.1)
    evaluation, reference = Evaluation(GENOTYPE, config, CPU), Evaluation(GENOTYPE, config, CPU)
    ((images, labels),) = reference.batches.epoch(reference.generators["batches"])
    logits, _ = reference.network.train()(images)
    expected = torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1).item()
    (record,) = evaluation.epochs()
    assert record.train_loss == pytest.approx(expected, rel=1e-5)


def test_bf16_computes_in_bfloat16_and_keeps_weights_in_float32():
    config = dataclasses.replace(TINY, epochs=1, precision="bf16")
    half, full = trained(config), trained(dataclasses.replace(TINY, epochs=1))
    with autocast(config, CPU):
        assert half.network.eval()(torch.zeros(2, 1, 8, 8))[0].dtype == torch.bfloat16
    assert all(parameter.dtype == torch.float32 for parameter in half.network.parameters())
    assert half.records[0].train_loss == pytest.approx(full.records[0].train_loss, rel=0.03)
    assert not same_weights(half, full)


def test_channels_last_is_the_same_training_but_for_rounding():
    first, last = trained(), trained(dataclasses.replace(TINY, channels_last=True))
    assert last.network.cells[0].preprocess0.conv.weight.is_contiguous(memory_format=torch.channels_last)
    for one, other in zip(first.records, last.records, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-3)


def test_the_imagenet_stem_trains_with_its_schedule():
    config = dataclasses.replace(TINY, stem="imagenet", schedule="linear", warmup_epochs=1, learning_rate=0.1)
    assert [record.learning_rate for record in trained(config).records] == pytest.approx([0.1, 0.1, 0.05])


def test_auto_width_takes_the_widest_network_under_its_limit(monkeypatch):
    limit = 1_000_000  # of the mobile setting: 600 million, a network that takes seconds to make
    monkeypatch.setattr(cost, "widest_channels", partial(cost.widest_channels, limit=limit))
    evaluation = Evaluation(GENOTYPE, dataclasses.replace(TINY, auto_width=True, cells=5), CPU)
    shape = evaluation.network_config
    wider = dataclasses.replace(shape, channels=shape.channels + 2)
    assert network_cost(GENOTYPE, shape).madds < limit <= network_cost(GENOTYPE, wider).madds
    assert shape.channels % 2 == 0


def test_a_batch_of_less_than_two_images_a_device_is_refused():
    with pytest.raises(ConfigError, match="batch_size: 16 is too small for 9 devices, each needs at least 2 images"):
        Evaluation(GENOTYPE, TINY, CPU, Workers(0, 9))


@pytest.mark.slow
def test_compiled_cells_give_the_same_training(monkeypatch):
    # Forward and backward are captured whole, and run as they are: C++ compilers take minutes for them.
    compile_module, graphs = torch.nn.Module.compile, []

    def backend(graph, inputs):
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    monkeypatch.setattr(torch.nn.Module, "compile", lambda module, **_: compile_module(module, backend=backend, fullgraph=True))
    plain = trained(dataclasses.replace(TINY, cell_evaluation="plain"))
    assert not graphs
    compiled = trained(dataclasses.replace(TINY, compile=True))
    # The three cells differ in shape, with and without drop path, in training and in evaluation, in whole and in smaller batches.
    assert len(graphs) >= 3
    for one, other in zip(plain.records, compiled.records, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-3)


def test_a_cutout_for_larger_images_is_refused():
    with pytest.raises(ConfigError, match="cutout: 16 would blank digits's images"):
        Evaluation(GENOTYPE, dataclasses.replace(TINY, cutout=16), CPU)


def test_a_small_network_learns_the_digits():
    config = EvalConfig(
        data="digits",
        train_images=1000,
        validation_fraction=0.1,
        cells=3,
        channels=8,
        epochs=6,
        batch_size=32,
        learning_rate=0.05,
        cutout=0,
        drop_path=0.0,
    )
    evaluation = trained(config)
    assert evaluation.records[-1].validation_accuracy > 0.9
    assert evaluation.records[-1].train_loss < evaluation.records[0].train_loss / 2
    assert evaluation.test().accuracy > 0.9


@pytest.mark.gpu
def test_training_on_cuda_resumes_too():
    device = torch.device("cuda")
    first = Evaluation(GENOTYPE, TINY, device)
    next(first.epochs())
    second = Evaluation(GENOTYPE, TINY, device)
    second.load_state_dict(saved(first))
    assert [record.epoch for record in second.epochs()] == [1, 2]
    assert len(second.test().correct) == 30
