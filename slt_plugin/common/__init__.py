"""What every part may use: the base of our errors, wording of messages, writing of files. Standard library only."""
