"""A node that listens to what Python does in the host: connections, processes, pickles, and files opened or run."""

import contextlib
import json
import sys
import time

PAUSE_SECONDS = 60
CONNECTS = ("socket.connect", "socket.getaddrinfo", "socket.gethostby", "socket.sendto", "urllib.", "http.", "ftplib.")
STARTS = (
    "subprocess.",
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "os.startfile",
    "webbrowser.",
)
CHANGES = ("os.remove", "os.rename", "os.symlink", "os.link", "os.truncate", "os.chmod", "shutil.")

watching = {"path": "", "pause": "", "busy": False}


def note(event: str, args: tuple) -> str | None:
    """What of an event goes into the file."""
    if event.startswith((*CONNECTS, *STARTS, *CHANGES, "pickle.find_class")):
        return f"{event} {str(args)[:300]}"
    if event == "open" and isinstance(args[1], str):
        return f"{'write' if set(args[1]) & set('wax+') else 'read'} {args[0]}"
    if event == "exec":
        return f"exec {args[0].co_filename}"
    return None


def listen(event: str, args: tuple) -> None:
    if not watching["path"] or watching["busy"]:
        return
    line = note(event, args)
    if line is None:
        return
    watching["busy"] = True
    try:
        with open(watching["path"], "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
        if watching["pause"] and line.startswith("read ") and watching["pause"] in line:
            watching["pause"] = ""
            wait()
    finally:
        watching["busy"] = False


def wait() -> None:
    """Until the host is told to interrupt."""
    import comfy.model_management

    deadline = time.monotonic() + PAUSE_SECONDS
    with contextlib.suppress(AttributeError):
        while not comfy.model_management.processing_interrupted() and time.monotonic() < deadline:
            time.sleep(0.01)


class ProbeWatch:
    """Write what happens from now on into a file, or nothing any more; stop once where a file is opened."""

    RETURN_TYPES = ()
    OUTPUT_NODE = True
    FUNCTION = "watch"
    CATEGORY = "probe"
    hooked = False

    @classmethod
    def INPUT_TYPES(cls):
        text = ("STRING", {"default": ""})
        return {"required": {"path": text, "pause": text, "number": ("INT", {"default": 0})}}

    def watch(self, path, pause, number):
        if not ProbeWatch.hooked:
            sys.addaudithook(listen)
            ProbeWatch.hooked = True
        watching.update(path=path, pause=pause)
        return {"ui": {"text": [str(number)]}}


NODE_CLASS_MAPPINGS = {"ProbeWatch": ProbeWatch}
