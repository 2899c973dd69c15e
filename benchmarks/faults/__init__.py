"""What the service survives: its processes and its clients are killed while it works, and then every promise is held
against it.

- Clients are processes of their own. What they are about to ask, and what they were told, is on disk before they go on:
  their journals are what the service is measured by, whatever was killed when.
- Which process meets which fault, and when, is a function of a seed.
- The audit asks the service as any client could; whatever is broken is one line of text that names it.
"""
