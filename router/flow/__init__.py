"""Flow control: who may ask, when a request runs, and what the client is told instead.

tenants, keys    whose request it is: API keys from a file
quota            requests and tokens per minute of each tenant, behind a protocol that replicas may share
patience         how long the client waits: deadlines, and how soon a stream must say something
advice           what a refused client is told: try again or not, and when
promises         keeps what was advised: who comes back in time is let in before newcomers
fair_queue       the order of those who wait: fair between tenants by tokens of work
usage            who has had more than others lately
room, turns      whether a worker should take a request yet; where a request goes whose turn it is
speed            how fast those who wait are let through
admission        the refusal at once of what would wait too long
tries            who of those that wait is tried again, and for whom a worker is kept
gate             the waiting itself
memory           what bodies, and prompts that wait for a worker, may take
"""
