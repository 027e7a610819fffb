"""The engine on a Temporal cluster, in the processes of an app."""
