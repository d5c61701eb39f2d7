"""Starting the commands elsewhere: as jobs of a SLURM cluster, or as several processes of this machine."""
