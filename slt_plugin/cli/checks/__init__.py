"""The checks of ``slt-doctor``, a file for each subject. The ``probe_*`` files run in child processes only."""
