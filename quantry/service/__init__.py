"""The whole service on this machine: the embedded servers, the API and a worker as child processes.

Only the extras' packages are needed here, and only ``processes`` imports one (psutil); the children import the rest.
"""
