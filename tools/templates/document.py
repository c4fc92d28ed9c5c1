"""A template as a file of workflows/: note, sources, the task as one node, and the saved video."""

from . import chinese, notes
from .graph import Graph, node_data
from .graphs import Edition
from .kinds import KINDS
from .tasks import CATEGORY, Task

PACK = "CogVideoX-Fun"
NOTE, FIRST_SOURCE, TASK, SAVE = 1, 2, 8, 9  # ids of the nodes outside; those inside begin at graph.FIRST_ID
GAP = 40
NOTE_SIZE, SOURCE_SIZE, TASK_WIDTH, SAVE_SIZE = (340, 560), (290, 320), 420, (400, 560)
LINE, TEXT_BOX = 26, 180  # pixels: a widget's line, and the prompt's box
NOTE_COLOURS = {"color": "#222", "bgcolor": "#000"}  # its links can be read on this, with either renderer
EXAMPLE = "square"  # the shipped clip that a nano edition uses
FROM_EXAMPLE = {"start_image": "first_frame", "end_image": "last_frame"}  # the others have the same names


def name_of(task: Task, nano: bool) -> str:
    """The file's name without its ending, which the template browser shows."""
    return f"{PACK} {task.title} (nano)" if nano else f"{PACK} {task.title}"


def blueprint_title(task: Task) -> str:
    return f"{task.title} ({PACK})"


def filled(task: Task, edition: Edition) -> Graph:
    graph = Graph()
    task.build(graph, edition)
    return graph


def definition(task: Task, graph: Graph) -> dict:
    return graph.subgraph(blueprint_title(task), f"{CATEGORY}/{task.group}", task.description)


def sources(task: Task, nano: bool) -> tuple[list[dict], dict[str, tuple[int, int]]]:
    """The nodes that give the task its pictures and clips; input of the task -> node and output."""
    if nano and task.sources:
        node = node_data(FIRST_SOURCE, "CogVideoXFunExampleClip", "", [EXAMPLE])
        outputs = list(KINDS["CogVideoXFunExampleClip"].outputs)
        return [node], {name: (FIRST_SOURCE, outputs.index(FROM_EXAMPLE.get(name, name))) for name in task.sources}
    nodes, given = [], {}
    for number, (name, (kind, title, output)) in enumerate(task.sources.items()):
        known = KINDS[kind]
        nodes.append(node_data(FIRST_SOURCE + number, kind, title, known.values({})))
        given[name] = FIRST_SOURCE + number, list(known.outputs).index(output)
    return nodes, given


def connected(nodes: dict[int, dict], wires: list[tuple[int, int, int, str]]) -> list[list]:
    """Links between nodes outside: (node, output, node, name of its input)."""
    links = []
    for number, (source, output, target, name) in enumerate(wires, 1):
        slots = nodes[target]["inputs"]
        slot = [one["name"] for one in slots].index(name)
        nodes[source]["outputs"][output]["links"].append(number)
        slots[slot]["link"] = number
        links.append([number, source, output, target, slot, nodes[source]["outputs"][output]["type"]])
    return links


def template(task: Task, nano: bool) -> dict:
    """A file of workflows/."""
    edition = task.nano if nano else task.real
    graph = filled(task, edition)
    name = name_of(task, nano)
    real = name_of(task, False)
    text = notes.nano_note(name, task.note, real) if nano else notes.note(name, task.note, edition.model)
    text += "\n" + chinese.section(task.title, list(dict.fromkeys(graph.columns)), real if nano else "")
    if not nano:
        text += "\n" + notes.links(edition.model)
    note = node_data(NOTE, "MarkdownNote", "Read me", [text]) | NOTE_COLOURS
    given, wires = sources(task, nano)
    texts = sum(source.type == "STRING" for source in graph.given.values())
    lines = sum(source.type in ("INT", "FLOAT", "COMBO") for source in graph.given.values()) + len(task.sources)
    instance = graph.instance(TASK, blueprint_title(task), (TASK_WIDTH, 90 + TEXT_BOX * texts + LINE * lines))
    save = node_data(SAVE, "SaveVideo", "", KINDS["SaveVideo"].values({"filename_prefix": f"video/{name}"}))
    place(note, given, instance, save)
    nodes = {node["id"]: node for node in (note, *given, instance, save)}
    links = connected(
        nodes, [(*source, TASK, input_name) for input_name, source in wires.items()] + [(TASK, 0, SAVE, "video")]
    )
    inside = definition(task, graph)
    return {
        "revision": 0,
        "last_node_id": inside["state"]["lastNodeId"],
        "last_link_id": len(links),
        "nodes": list(nodes.values()),
        "links": links,
        "groups": [],
        "definitions": {"subgraphs": [inside]},
        "config": {},
        "extra": {"linearMode": False, "linearData": app(given, graph)},
        "version": 0.4,
    }


def place(note: dict, given: list[dict], instance: dict, save: dict) -> None:
    """From left to right: note, sources below each other, the task, the video."""
    note["size"], save["size"] = list(NOTE_SIZE), list(SAVE_SIZE)
    for node in given:
        node["size"] = list(SOURCE_SIZE)
    x = 0
    for column in ([note], given, [instance], [save]):
        y = 0
        for node in column:
            node["pos"] = [x, y]
            y += node["size"][1] + GAP
        x += max((node["size"][0] + GAP for node in column), default=0)


def app(given: list[dict], graph: Graph) -> dict:
    """What App mode shows: sources, prompt and seed, and the video."""
    inputs = [[str(node["id"]), next(iter(KINDS[node["type"]].widgets))] for node in given]
    inputs += [
        *([str(TASK), name] for name in ("word", "prompt") if name in graph.given),
        *([str(inside), name] for inside, name in graph.shown[:1]),
    ]
    return {"inputs": inputs, "outputs": [str(SAVE)]}


def blueprint(task: Task) -> dict:
    """A file of subgraphs/: one node and its definition."""
    graph = filled(task, task.real)
    inside = definition(task, graph)
    node = graph.instance(TASK, blueprint_title(task), (TASK_WIDTH, 560))
    return {
        "revision": 0,
        "last_node_id": inside["state"]["lastNodeId"],
        "last_link_id": 0,
        "nodes": [node],
        "links": [],
        "version": 0.4,
        "definitions": {"subgraphs": [inside]},
        "extra": {"BlueprintDescription": task.description, "BlueprintSearchAliases": list(task.aliases)},
    }
