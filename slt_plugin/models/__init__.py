"""fairseq models; importing ``slt_plugin.tasks`` registers them."""
