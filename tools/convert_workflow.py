"""Rewrite workflows of other CogVideoX packs for this one: ``python tools/convert_workflow.py old.json new.json``.

With ``--count folder`` it writes nothing and prints how many nodes of every file keep all their values.
"""

import argparse
import json
import sys
from pathlib import Path

# The Python of ComfyUI's portable version does not look for modules in the folder of a script.
sys.path.insert(0, str(Path(__file__).resolve().parent))

from old_workflows.convert import convert
from old_workflows.document import WorkflowError
from old_workflows.report import Report


def read(path: Path) -> object:
    """A JSON file.

    Raises:
        WorkflowError: it does not exist, or can't be read.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except FileNotFoundError as error:
        raise WorkflowError(f"{path} does not exist: give the path of a saved workflow") from error
    except (OSError, ValueError) as error:
        raise WorkflowError(f"{path} can't be read as JSON ({error}): save the workflow again in ComfyUI") from error


def convert_from(path: Path) -> tuple[dict, Report]:
    """The converted workflow of a file.

    Raises:
        WorkflowError: it can't be read, or is no workflow.
    """
    data = read(path)
    try:
        return convert(data)
    except WorkflowError as error:
        raise WorkflowError(f"{path}: {error}") from error


def count(folder: Path) -> None:
    """Print the figure of every workflow below a folder, and what is lost.

    Raises:
        WorkflowError: it is no folder.
    """
    if not folder.is_dir():
        raise WorkflowError(f"{folder} is no folder: --count takes a folder with workflows")
    for path in sorted(folder.rglob("*.json")):
        name = path.relative_to(folder)
        try:
            _, report = convert_from(path)
        except WorkflowError:
            print(f"{name}: not a workflow")
            continue
        print(f"{name}: {report.figure()}")
        for entry in report.entries.values():
            for problem in entry.problems:
                print(f"    {entry.name}: {problem}")


def convert_file(old: Path, new: Path) -> Report:
    """Write the converted workflow.

    Raises:
        WorkflowError: the old file is no workflow, or the new one can't be written.
    """
    if new.exists() and old.exists() and new.samefile(old):
        raise WorkflowError(f"{new} is the old file, which would be overwritten: give another name for the new file")
    data, report = convert_from(old)
    try:
        new.write_text(json.dumps(data, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    except OSError as error:
        raise WorkflowError(f"{new} can't be written ({error}): give another place for the new file") from error
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("old", nargs="?", type=Path, help="a workflow in UI or API format")
    parser.add_argument("new", nargs="?", type=Path, help="the file to write")
    parser.add_argument("--count", type=Path, metavar="FOLDER", help="count the nodes that keep all their values")
    args = parser.parse_args()
    if bool(args.count) == bool(args.new):
        parser.error("give an old and a new file, or --count and a folder")
    try:
        if args.count:
            count(args.count)
            return
        report = convert_file(args.old, args.new)
    except WorkflowError as error:
        sys.exit(str(error))
    print(report.figure())
    for line in report.lines():
        print(f"    {line}")


if __name__ == "__main__":
    main()
