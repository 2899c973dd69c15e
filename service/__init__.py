"""The curation service: engines, verifiers, store, jobs and the HTTP API, in one process."""
