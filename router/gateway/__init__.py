"""Placement for somebody else's gateway: an endpoint picker as the Gateway API Inference Extension defines it.

server       gRPC: one call per HTTP request of the gateway
exchange     the call's messages as the events of ASGI, which the API endpoints read and answer
pick         an API request up to its placement, which the gateway is told; then its answer as it passes
messages     the messages, by their numbers

Its other half is a router beside each decode worker, which the gateway sends the request to (../beside.py).
"""
