"""Where networks come from: one file a source, each giving the same record."""
