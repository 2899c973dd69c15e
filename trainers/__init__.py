"""Programs that learn from what the service serves. They talk to it over HTTP only."""
