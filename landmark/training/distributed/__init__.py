"""How the workers of a run start, communicate, are monitored and recover."""
