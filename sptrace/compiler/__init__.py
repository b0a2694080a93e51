"""From a network to a verified program. `sptrace.compile` and `sptrace.Program` are its public names."""
