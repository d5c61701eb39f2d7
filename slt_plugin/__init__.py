"""slt_plugin: sign language video and landmarks to text, inside fairseq.

Importing this package is cheap and registers nothing. fairseq registers the task, the models and the
criterions through ``--user-dir``; Python code does it with ``import slt_plugin.tasks``.
"""

__version__ = "0.1.0"
