"""Image sets are read as people keep them: parts, columns and labels; what is wrong is named by file and row."""

import json
import shutil

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from images import check, encode, load, pixels, refuse, write_folders, write_image_set, write_parquet
from pdarts_tune.config.serialize import ConfigError


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PDARTS_TUNE_DATA", str(tmp_path / "data"))


def test_plain_bytes_columns_and_val_parquet_are_read_too(tmp_path):
    name = write_image_set(tmp_path, test_name="val.parquet")
    write_parquet(tmp_path / "train.parquet", [encode(image) for image in pixels(40)], [0, 1] * 20, plain=True)
    dataset = load(name)
    assert torch.equal(dataset.train.images, torch.from_numpy(pixels(40)).permute(0, 3, 1, 2))
    assert len(dataset.test) == 20
    assert dataset.class_names == ("ant", "bee")  # from the other file


def test_class_names_come_from_hugging_face_metadata_or_are_numbers(tmp_path):
    images = {
        file: [encode(image) for image in pixels(4, seed=seed)] for seed, file in enumerate(("train.parquet", "test.parquet"))
    }
    label = {"names": ["cat", "dog"], "_type": "ClassLabel"}
    metadata = {"huggingface": {"info": {"features": {"image": {"_type": "Image"}, "label": label}}}}
    for file in images:
        write_parquet(tmp_path / file, images[file], [0, 1, 1, 0], metadata)
    assert load(f"parquet:{tmp_path}").class_names == ("cat", "dog")
    for file in images:
        write_parquet(tmp_path / file, images[file], [0, 1, 2, 0])
    assert load(f"parquet:{tmp_path}").class_names == ("0", "1", "2")


def test_missing_folders_and_files_say_what_was_looked_for(tmp_path):
    refuse(f"parquet:{tmp_path}/nowhere", r"nowhere is not a folder; parquet:PATH needs one that holds train.parquet")
    refuse(f"parquet:{tmp_path}", r"has no train.parquet; it holds nothing")
    name = write_image_set(tmp_path)
    (tmp_path / "test.parquet").rename(tmp_path / "extra.parquet")
    refuse(name, r"has no test.parquet; it holds extra.parquet, train.parquet")


def test_files_that_are_not_parquet_are_named(tmp_path):
    name = write_image_set(tmp_path)
    (tmp_path / "test.parquet").write_bytes(b"PAR1 but not really")
    refuse(name, r"test.parquet: cannot be read as Parquet")
    shutil.copy(tmp_path / "train.parquet", tmp_path / "test.parquet")
    with (tmp_path / "test.parquet").open("r+b") as file:
        file.truncate(200)
    refuse(name, r"test.parquet: cannot be read as Parquet")


def test_missing_columns_say_which_there_are(tmp_path):
    name = write_image_set(tmp_path)
    pq.write_table(pa.table({"image": ["x"], "label": [1]}), tmp_path / "train.parquet")
    refuse(name, r"train.parquet: needs one column of encoded images, .* it has image \(string\), label \(int64\)$")
    pq.write_table(pa.table({"a": [b"x"], "b": [b"x"], "label": [1]}), tmp_path / "train.parquet")
    refuse(name, r"train.parquet: needs one column of encoded images, .* it has a \(binary\), b \(binary\), label")
    pq.write_table(pa.table({"image": [b"x"], "caption": ["x"]}), tmp_path / "train.parquet")
    refuse(name, r"train.parquet: needs a column of labels, .* it has image \(binary\), caption \(string\)$")
    pq.write_table(pa.table({"img": [b"x", b"y"], "label": [0, 1]}), tmp_path / "train.parquet")
    refuse(name, r"test.parquet: no column 'img', it has image, label")


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        ([0, 1, -1, 1], "row 2: the label is negative"),
        ([0, 1, 1, 7], "row 3: label 7 is out of range, there are 2 classes"),
        (["0", "1", "0", "1"], ""),
        ([0.0, 1.0, 0.5, 1.0], r"(it has image \(.*, label \(double\)|column 'label' is double, labels are whole numbers)"),
        ([[0], [1]], r"(it has image \(.*, label \(list.*|column 'label' is list.*, labels are whole numbers)"),
        ([0, None, 1, 1], "row 1: the label is missing"),
        (pa.array([], pa.int64()), "has no rows"),
    ],
)
def test_labels_that_cannot_be_used_are_named_by_row(tmp_path, labels, words):
    name = write_image_set(tmp_path)
    for file in ("train.parquet", "test.parquet"):
        whole = (tmp_path / file).read_bytes()
        images = [encode(image) for image in pixels(len(labels))]
        write_parquet(tmp_path / file, images, labels, {"class_names": ["ant", "bee"]})
        refuse(name, f"{file}.*{words}")
        (tmp_path / file).write_bytes(whole)


def test_class_names_that_disagree_or_cannot_be_read_are_refused(tmp_path):
    name = write_image_set(tmp_path)
    images = [encode(image) for image in pixels(4)]
    write_parquet(tmp_path / "test.parquet", images, [0, 1] * 2, {"class_names": ["bee", "ant"]})
    refuse(name, r"test.parquet: its class names are not those of .*train.parquet")
    write_parquet(tmp_path / "test.parquet", images, [0, 1] * 2, {"class_names": {"ant": 0}})
    refuse(name, r"test.parquet: the class names in its metadata must be a list")
    write_parquet(tmp_path / "test.parquet", images, [0, 1] * 2, {"huggingface": []})
    refuse(name, r"test.parquet: the class names in its metadata cannot be read")


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("test_name", ["val", "test"])
def test_folders_come_back_pixel_for_pixel_with_their_classes(tmp_path, channels, test_name):
    dataset = load(write_folders(tmp_path, channels=channels, test_name=test_name))
    images = torch.from_numpy(pixels(12, channels=channels).reshape(12, 8, 8, channels)).permute(0, 3, 1, 2)
    assert torch.equal(dataset.train.images, torch.cat((images[::2], images[1::2])))  # sorted by class
    assert dataset.train.labels.tolist() == [0] * 6 + [1] * 6
    assert dataset.class_names == ("ant", "bee")
    assert dataset.in_channels == channels
    assert len(dataset.test) == 6


@pytest.mark.parametrize(("content", "flips"), [(None, True), ({"mirror": True}, True), ({"mirror": False}, False)])
def test_a_set_can_say_that_it_must_not_be_mirrored(tmp_path, content, flips):
    name = write_folders(tmp_path)
    if content is not None:
        (tmp_path / "dataset.json").write_text(json.dumps(content))
    assert load(name).flip is flips


@pytest.mark.parametrize("content", ['{"mirror": "no"}', '{"miror": false}', "[]", "{"])
def test_metadata_that_cannot_be_used_is_refused(tmp_path, content):
    name = write_folders(tmp_path)
    (tmp_path / "dataset.json").write_text(content)
    refuse(name, r"dataset.json: (must be \{|cannot be read as JSON)")


def test_missing_folders_and_classes_are_named(tmp_path):
    refuse(f"folder:{tmp_path}/nowhere", "nowhere is not a folder; folder:.*nowhere needs one that holds train/ and val/")
    refuse(f"folder:{tmp_path}", "has no folder train; it holds nothing")
    name = write_folders(tmp_path)
    images = list((tmp_path / "val").rglob("*.png"))
    for image in images:
        image.rename(tmp_path / image.name)
    refuse(name, r"val: holds no image$")
    for image in images:
        (tmp_path / image.name).rename(image)
    for file in (tmp_path / "val").iterdir():
        file.rename(tmp_path / "val" / f"other {file.name}")
    with (
        pytest.warns(UserWarning, match="left out"),
        pytest.raises(ConfigError, match=r"val: has no class of .*train; its folders are o"),
    ):
        load(name)
    for part in ("train", "val"):
        shutil.rmtree(tmp_path / part)
        (tmp_path / part).mkdir()
    refuse(name, r"train: has no folders; it must hold one folder for each class")


def hub_table(count, seed, image="image", label="label", kind=None, labels=None, **further):
    images = [{"bytes": encode(picture), "path": None} for picture in pixels(count, seed=seed)]
    binary = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    labels = labels or [row % 3 for row in range(count)]
    return pa.table({image: pa.array(images, binary), label: pa.array(labels, kind)} | further)


def write_hub(folder, files, **columns):
    """Parquet files, each with images of its own. Returns the data set's name."""
    for seed, file in enumerate(files):
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(hub_table(12, seed, **columns), folder / file)
    return f"parquet:{folder}"


@pytest.mark.parametrize(
    ("train", "test"),
    [
        (["train-00000-of-00001.parquet"], ["validation-00000-of-00001.parquet"]),
        (
            ["data/train-00000-of-00002-5d6ab2.parquet", "data/train-00001-of-00002-77bc01.parquet"],
            ["data/test-00000-of-00001-e.parquet"],
        ),
        (["default/train/0000.parquet", "default/train/0001.parquet"], ["default/test/0000.parquet"]),
        (["default/partial-train/0000.parquet"], ["default/valid/0000.parquet"]),
        (["train/part-0.parquet", "train/part-1.parquet"], ["dev/part-0.parquet"]),
        (["flowers-train.parquet"], ["flowers-test.parquet"]),
        (["data/train/train-0.parquet"], ["data/eval/eval-0.parquet"]),
        (["Train.parquet"], ["Val.parquet"]),
    ],
)
def test_parts_are_found_as_the_hugging_face_hub_names_them(tmp_path, train, test):
    name = write_hub(tmp_path, [*train, *test])
    for hidden in (".cache/train.parquet", "__MACOSX/train.parquet", "._train.parquet"):
        (tmp_path / hidden).parent.mkdir(exist_ok=True)
        (tmp_path / hidden).write_bytes(b"nothing")
    dataset = load(name)
    assert torch.equal(dataset.train.images[-12:], torch.from_numpy(pixels(12, seed=len(train) - 1)).permute(0, 3, 1, 2))
    assert torch.equal(dataset.test.images, torch.from_numpy(pixels(12, seed=len(train))).permute(0, 3, 1, 2))
    assert (len(dataset.train), dataset.num_classes) == (12 * len(train), 3)


def test_files_that_are_missing_or_of_several_sets_are_named(tmp_path):
    name = write_hub(tmp_path / "gap", ["train-00000-of-00003.parquet", "train-00002-of-00003.parquet", "test.parquet"])
    refuse(name, r"train-00000-of-00003.parquet: is one of 3 files, number 1 is missing")
    name = write_hub(tmp_path / "two", ["train.parquet", "train-00000-of-00001.parquet", "test.parquet"])
    refuse(name, r"holds both train.parquet and train-00000-of-00001.parquet, keep those of one form")
    name = write_hub(tmp_path / "sets", ["cats/train.parquet", "cats/test.parquet", "dogs/train.parquet", "dogs/test.parquet"])
    refuse(name, r"sets holds several sets: cats, dogs; name the folder of one")
    name = write_hub(tmp_path / "kinds", ["train-0.parquet", "train-1.parquet", "test.parquet"])
    pq.write_table(hub_table(12, 0, labels=[*"abc"] * 4), tmp_path / "kinds" / "train-1.parquet")
    refuse(name, r"train-0.parquet: its labels are of another type than those of the part's other files")
    name = write_hub(tmp_path / "lfs", ["train.parquet", "test.parquet"])
    (tmp_path / "lfs" / "test.parquet").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4\nsize 9\n")
    refuse(name, r"test.parquet: cannot be read as Parquet \(a pointer of Git LFS, git lfs pull fetches the file\)")


LETTERS = [*"bca"] * 4


@pytest.mark.parametrize(
    ("columns", "classes"),
    [
        ({"image": "img"}, ("0", "1", "2")),
        ({"image": "picture", "label": "labels"}, ("0", "1", "2")),
        ({"label": "category_id"}, ("0", "1", "2")),
        ({"labels": [1, 2, 3] * 4}, ("1", "2", "3")),
        ({"labels": [2, 30, 100] * 4}, ("2", "30", "100")),
        ({"labels": LETTERS}, ("a", "b", "c")),
        ({"labels": LETTERS, "kind": pa.large_string()}, ("a", "b", "c")),
        ({"labels": LETTERS, "kind": pa.string_view()}, ("a", "b", "c")),
        ({"labels": LETTERS, "kind": pa.dictionary(pa.int8(), pa.string())}, ("a", "b", "c")),
        ({"labels": [3, 5, 9] * 4, "kind": pa.dictionary(pa.int8(), pa.int64())}, ("3", "5", "9")),
        ({"kind": pa.uint8()}, ("0", "1", "2")),
        ({"labels": [True, False, True] * 4}, ("false", "true")),
    ],
)
def test_columns_have_the_names_and_types_that_people_give_them(tmp_path, columns, classes):
    dataset = load(write_hub(tmp_path, ["train.parquet", "test.parquet"], **columns))
    assert dataset.class_names == classes
    given = [str(label).lower() for label in columns.get("labels", [0, 1, 2] * 4)]
    for part in (dataset.train, dataset.test):
        assert [classes[label] for label in part.labels.tolist()] == given


@pytest.mark.parametrize("kind", [pa.large_binary(), pa.binary_view(), pa.dictionary(pa.int32(), pa.binary())])
def test_images_may_be_of_any_binary_type(tmp_path, kind):
    name = write_hub(tmp_path, ["train.parquet", "test.parquet"])
    images = [encode(image) for image in pixels(12, seed=5)]
    pq.write_table(pa.table({"image": pa.array(images).cast(kind), "label": [0, 1, 2] * 4}), tmp_path / "train.parquet")
    assert torch.equal(load(name).train.images, torch.from_numpy(pixels(12, seed=5)).permute(0, 3, 1, 2))


def test_of_several_columns_of_labels_the_finer_is_taken_which_one_line_says(tmp_path):
    further = {"coarse_label": pa.array([0, 1, 1] * 4), "caption": pa.array(list("abcdefghijkl"))}
    name = write_hub(tmp_path, ["train.parquet", "test.parquet"], label="fine_label", **further)
    with pytest.warns(UserWarning, match=r"labels in fine_label \(3 classes\), coarse_label \(2 classes\); fine_label is taken$"):
        assert load(name).class_names == ("0", "1", "2")


def test_a_column_that_the_hub_calls_a_class_is_one_by_any_name(tmp_path):
    name = write_hub(tmp_path, ["test.parquet"], label="species")
    feature = {"_type": "ClassLabel", "names": ["cat", "dog", "emu"]}
    metadata = {"huggingface": json.dumps({"info": {"features": {"species": feature}}})}
    pq.write_table(hub_table(12, 1, label="species").replace_schema_metadata(metadata), tmp_path / "train.parquet")
    assert load(name).class_names == ("cat", "dog", "emu")


@pytest.mark.parametrize("missing", [-1, None])
def test_a_test_part_without_labels_is_passed_over_which_one_line_says(tmp_path, missing):
    name = write_hub(tmp_path, ["train.parquet", "test.parquet", "validation.parquet"])
    validation = torch.from_numpy(pixels(12, seed=2)).permute(0, 3, 1, 2)
    without = hub_table(12, 9, labels=[missing] * 12, kind=pa.int64())
    for table in (without, without.drop_columns(["label"])):
        pq.write_table(table, tmp_path / "test.parquet")
        with pytest.warns(UserWarning, match=r"test.parquet has no labels and is left out"):
            assert torch.equal(load(name).test.images, validation)
    (tmp_path / "validation.parquet").unlink()
    with (
        pytest.warns(UserWarning, match="has no labels and is left out"),
        pytest.raises(ConfigError, match="no labels in a column 'label'"),
    ):
        load(name)


@pytest.mark.filterwarnings("ignore:data")
def test_the_classes_of_a_filtered_set_are_those_with_images_and_a_part_may_lack_some(tmp_path):
    names = {"class_names": ["ant", "bee", "cat", "dog"]}
    name = write_image_set(tmp_path)
    images = [encode(image) for image in pixels(6)]
    for file, labels in (("train.parquet", [0, 3] * 3), ("test.parquet", [3, 0] * 3)):
        write_parquet(tmp_path / file, images, labels, names)
    with pytest.warns(UserWarning, match=r"no image of bee, cat in .*train.parquet and .*test.parquet$|among its training"):
        dataset = load(name)
    assert dataset.class_names == ("ant", "dog")
    assert dataset.train.labels.tolist() == [0, 1] * 3
    write_parquet(tmp_path / "test.parquet", images, [0] * 6, names)
    with pytest.warns(UserWarning, match="no image of dog in") as caught:
        assert check(name).num_classes == 2
    assert str(caught[1].message) == f"data: no image of dog in {tmp_path}/test.parquet"


@pytest.mark.filterwarnings("ignore:data")
def test_class_folders_may_be_named_in_many_ways_and_a_part_may_lack_some(tmp_path):
    name = write_folders(tmp_path, test_name="Validation", classes=("ant", "bee", "cat"))
    shutil.rmtree(tmp_path / "Validation" / "cat")
    (tmp_path / "train").rename(tmp_path / "training")
    (tmp_path / "test").mkdir()
    shutil.copy(tmp_path / "Validation" / "ant" / "000.png", tmp_path / "test" / "0.png")
    with pytest.warns(UserWarning, match="no image of cat") as caught:
        info = check(name)
    assert [str(warning.message) for warning in caught] == [
        f"data: {tmp_path}/test has no labels and is left out",
        f"data: no image of cat in {tmp_path}/Validation",
    ]
    assert (info.num_classes, info.train_images, info.test_images) == (3, 12, 4)


def test_hidden_files_and_folders_are_no_part_of_a_set(tmp_path):
    name = write_folders(tmp_path)
    whole = load(name)
    for hidden in ("train/.ipynb_checkpoints", "train/ant/.ipynb_checkpoints", "train/__MACOSX/ant", "__MACOSX/train/ant"):
        (tmp_path / hidden).mkdir(parents=True)
        shutil.copy(tmp_path / "train" / "ant" / "000.png", tmp_path / hidden / "000.png")
    (tmp_path / "train" / "bee" / "._001.png").write_bytes(b"\0\5\26\7")
    assert torch.equal(load(name).train.images, whole.train.images)


def test_images_of_any_ending_are_read_and_other_files_counted(tmp_path):
    name = write_folders(tmp_path)
    whole = load(name)
    for number, ending in enumerate(("jfif", "gif", "jpe", "PNG", "tga", "avif")):
        (tmp_path / f"train/ant/{2 * number:03}.png").rename(tmp_path / f"train/ant/{2 * number:03}.{ending}")
    assert torch.equal(load(name).train.images, whole.train.images)
    for file in ("train/ant/notes.txt", "train/bee/list", "train/LICENSE"):
        (tmp_path / file).write_text("no image")
    with pytest.warns(UserWarning, match="left out 2 files without an image's ending, .*train/ant/notes.txt is one"):
        assert len(load(name).train) == 12


def test_class_folders_one_level_too_deep_are_named(tmp_path):
    for part in ("train", "val"):
        write_folders(tmp_path / part, test_name="train")
        shutil.move(tmp_path / part / "train", tmp_path / part / "x")
        shutil.rmtree(tmp_path / part / "x")
        write_folders(tmp_path / part)
        shutil.rmtree(tmp_path / part / "val")
    refuse(f"folder:{tmp_path}", r"train: holds train alone; train holds ant, bee; class folders must lie in train/ itself")


def test_labels_that_no_number_or_text_can_hold_are_damaged(tmp_path):
    name = write_hub(tmp_path, ["train.parquet", "test.parquet"], labels=[2**63] * 12, kind=pa.uint64())
    refuse(name, r"train.parquet: its labels are damaged \(")
    name = write_hub(tmp_path, ["train.parquet", "test.parquet"], labels=LETTERS)
    path = tmp_path / "train.parquet"
    texts = pa.array([*LETTERS[:-1], "a" * 9]).cast(pa.binary()).to_pylist()
    table = hub_table(12, 0, labels=[bytes(text) if len(text) < 9 else b"\xff" * 9 for text in texts], kind=pa.binary())
    column = pa.Array.from_buffers(pa.string(), 12, table.column("label").chunk(0).buffers())
    pq.write_table(table.set_column(1, "label", column), path)
    refuse(name, r"train.parquet: its labels are damaged \(.*UTF8")


def test_damaged_pages_of_labels_and_of_images_are_named_by_file(tmp_path):
    name = write_image_set(tmp_path)
    path = tmp_path / "train.parquet"
    whole = path.read_bytes()
    group = pq.ParquetFile(path).metadata.row_group(2)
    for column, message in (
        ("label", r"train.parquet: its labels are damaged \("),
        ("image.bytes", r"train.parquet, row 14 or one"),
    ):
        (chunk,) = (group.column(index) for index in range(group.num_columns) if group.column(index).path_in_schema == column)
        content = bytearray(whole)
        for position in range(24):
            content[(chunk.dictionary_page_offset or chunk.data_page_offset) + position] ^= 0x5A
        path.write_bytes(content)
        with pytest.raises(ConfigError, match=message) as caught:
            load(name)
        assert "\n" not in str(caught.value)
