"""Starting a subprocess, what it may see, and the messages it sends back."""
