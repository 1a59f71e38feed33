"""A cluster in simulated time: the engine's own scheduler and block pool, the router's own policies, modelled seconds.

trace         requests as they were recorded
kinds         what a worker can do: seconds of a step, memory, links, price
clock         simulated time
links         KV on its way between workers
call          one request on its way through the workers; `sequence` is what one of them knows of it
worker        one worker: `schedule` and `BlockPool` of the engine, without a model; it works in `span`s of steps
view          which worker has which blocks, as far as a router knows
line          requests that wait in a router until workers have room
router        what one router knows (late, and not everything), its policy, placing and placing again
cluster       all of them, and the faults; `simulate` is the door
outcome       what became of each request, and percentiles over all
plan          `penstock plan`: how many workers of which kind meet the objectives, at what cost

Deterministic: nothing here reads a clock or draws a number without a seed. Knows no HTTP and no tensors.
"""
