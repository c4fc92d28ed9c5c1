"""Write workflows/ and subgraphs/ from their source, tools/templates: ``python tools/make_templates.py``.

A template is a workflow that the template browser lists. A blueprint is the same task as one node of the node library.
"""

import json

from pack import ROOT
from templates.document import blueprint, blueprint_title, name_of, template
from templates.tasks import EDITIONS

WORKFLOWS, SUBGRAPHS = ROOT / "workflows", ROOT / "subgraphs"


def made() -> dict[str, str]:
    """Path in the repository -> text of every file."""
    files = {}
    for task, nano in EDITIONS:
        files[f"workflows/{name_of(task, nano)}.json"] = template(task, nano)
        files[f"subgraphs/{blueprint_title(task)}.json"] = blueprint(task)
    return {path: json.dumps(value, indent=1, ensure_ascii=False) + "\n" for path, value in files.items()}


def present() -> dict[str, str]:
    """Path in the repository -> text of every file that is there."""
    paths = [*WORKFLOWS.glob("*.json"), *SUBGRAPHS.glob("*.json")]
    return {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in paths}


def main() -> None:
    files = made()
    for path in present().keys() - files:
        (ROOT / path).unlink()
    for path, text in files.items():
        (ROOT / path).write_text(text, encoding="utf-8")
    print(f"{len(files)} files written to {WORKFLOWS} and {SUBGRAPHS}")


if __name__ == "__main__":
    main()
