"""Files that say what a director should do, as values of nfqlb.model."""
