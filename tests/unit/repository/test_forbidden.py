"""Calls and imports that the pack must not contain. To add a rule or an exception, add it to the table."""

import ast
import re
from collections.abc import Iterator

import pytest
from sources import imports, name_of, pack_files

CODE = (
    "aiohttp|asyncio|bdb|cffi|code|codeop|ctypes|dill|ftplib|http|httpx|huggingface_hub|imaplib|imp|importlib|joblib|"
    "marshal|multiprocessing|os\\.popen|os\\.system|pickle|poplib|pty|requests|runpy|shelve|smtplib|socket|"
    "socketserver|ssl|subprocess|telnetlib|torch\\.hub|urllib|urllib3|webbrowser|websockets|xmlrpc|yaml|zipimport"
)
RUNS = (
    "system|popen|startfile|exec[lv]\\w*|spawn[lv]\\w*|posix_spawn|fork|import_module|load_module|exec_module|"
    "find_class|load_state_dict_from_url|urlopen|download_url_to_file|hf_hub_download|snapshot_download|"
    "get_attr_from_path"
)
CHANGES = (
    "write_text|write_bytes|mkdir|makedirs|touch|symlink_to|hardlink_to|chmod|rmdir|unlink|rmtree|copytree|copyfile|"
    "save_file"
)

# (pattern of what `facts` yields, why it is forbidden, the files that may contain it)
RULES = [
    (
        f"import ({CODE})(\\.|$)",
        "it runs code, starts a program or opens the network",
        ["gguf.py", "kernels.py", "libraries.py"],
    ),
    ("name (eval|exec|__import__|breakpoint|globals|locals)$", "it runs code or reaches what is not passed", []),
    ("call compile\\(", "it runs code", []),
    ("call vars\\(", "it reaches into other objects", ["kernels.py", "model.py", "compat.py"]),
    (f"attribute .+\\.({RUNS})$", "it runs code, starts a program or opens the network", ["gguf.py", "libraries.py"]),
    ("call torch\\.(jit\\.load|package)", "it runs code from a file", []),
    ("call torch\\.load\\((?!.*weights_only=True)", "without weights_only it runs code from a pickle", []),
    ("call .*allow_pickle", "a pickle can run code", []),
    (
        "call .*(from_pretrained|load_config|get_config_dict)\\((?!.*local_files_only=True)",
        "without local_files_only it downloads",
        [],
    ),
    ("call .*(trust_remote_code|from_pretrained\\(.*\\*\\*)", "it may run a model's code", []),
    ("call [gs]etattr\\((builtins|os|sys|torch),", "it hides what is called", []),
    (f"attribute .+\\.({CHANGES})$", "the pack writes nothing to disk", []),
    ("attribute (os\\.(remove|rename|replace)|(torch|np|numpy)\\.save)$", "the pack writes nothing to disk", []),
    ("open for writing", "the pack writes nothing to disk", []),
    ("(text cuda|call .+\\.cuda\\()", "ComfyUI chooses the device", []),
    ("call print\\(", "the pack uses logging", []),
]


def facts(source: str) -> Iterator[str]:
    """What a file imports, names and calls, one line each; comments and docstrings don't count."""
    nodes = list(ast.walk(ast.parse(source)))
    for level, module, names in imports(nodes):
        if level == 0:
            yield from (f"import {name}" for name in (module, *(f"{module}.{name}" for name in names)))
    for node in nodes:
        if isinstance(node, ast.Name):
            yield f"name {node.id}"
        elif isinstance(node, ast.Attribute):
            yield f"attribute {ast.unparse(node)}"
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield f"text {node.value}"
        elif isinstance(node, ast.Call):
            yield f"call {ast.unparse(node)}"
            if opens_for_writing(node):
                yield "open for writing"


def opens_for_writing(call: ast.Call) -> bool:
    """``open(path, mode)`` and ``path.open(mode)`` with a mode that writes, or one that is computed."""
    if ast.unparse(call.func).split(".")[-1] != "open":
        return False
    modes = [keyword.value for keyword in call.keywords if keyword.arg == "mode"]
    modes = modes or call.args[0 if isinstance(call.func, ast.Attribute) else 1 :]
    return bool(modes) and not (isinstance(modes[0], ast.Constant) and set(modes[0].value) <= set("rbt"))


@pytest.mark.parametrize("path", pack_files(), ids=name_of)
def test_nothing_forbidden(path):
    found = list(facts(path.read_text(encoding="utf-8")))
    for pattern, why, allowed in RULES:
        matches = [fact for fact in found if re.match(pattern, fact, re.DOTALL)]
        assert not matches or path.name in allowed, f"{matches[0][:200]}: {why}"
