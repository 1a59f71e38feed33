"""The front process of a worker: HTTP on one side, the engine process behind a pipe on the other."""
