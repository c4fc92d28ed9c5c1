"""Workflows of other CogVideoX packs, rewritten for this one. The command is tools/convert_workflow.py.

``document`` reads and writes files, ``graph`` holds the nodes and their links, ``values`` and ``facts`` know the
order in which old nodes saved their values. ``videox_fun``, ``wrapper`` with ``wrapper_sampler``, and ``native``
rewrite the nodes of one pack each, through ``conversion``. ``subgraphs`` changes what subgraphs show outside.
``layout`` finds places for new nodes and notes.
"""
