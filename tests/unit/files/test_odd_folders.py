"""Folders with symbolic links and without permissions, and long error messages."""

import json
from pathlib import Path

from cogvideox_fun.model_loading.files import checkpoint


def write_models(root: Path, count: int) -> list[str]:
    """Folders in hub layout, every second one of another family; returns the names of those to be found."""
    names = [f"owner{i % 10}/model{i:03}" for i in range(count)]
    for i, name in enumerate(names):
        folder = root / name / "transformer"
        folder.mkdir(parents=True)
        family = "CogVideoXTransformer3DModel" if i % 2 else "FluxTransformer2DModel"
        (folder / "config.json").write_text(json.dumps({"_class_name": family}))
    return sorted(names[1::2])


def test_links_in_circles_name_each_model_once(tmp_path):
    expected = write_models(tmp_path, 40)
    for i in range(10):
        (tmp_path / f"loop{i}").symlink_to(tmp_path)
        (tmp_path / f"owner{i}" / "up").symlink_to(tmp_path)
        (tmp_path / f"owner{i}" / "self").symlink_to("self")
    assert list(checkpoint.find_models([tmp_path], {})) == expected


def test_a_folder_that_cant_be_read_hides_no_other(tmp_path):
    """A link to a name that is too long raises an OSError, like a folder of another user."""
    expected = write_models(tmp_path, 2)
    (tmp_path / "long").symlink_to("x" * 300)
    (tmp_path / "linked").mkdir()
    (tmp_path / "linked" / "transformer").symlink_to("y" * 300)
    assert list(checkpoint.find_models([tmp_path], {})) == expected
