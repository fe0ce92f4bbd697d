"""Tables and figures of what the runs gave."""
