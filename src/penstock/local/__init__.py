"""Local mode: router, prefill and decode workers as processes of one machine.

up, demo, chat   what the commands do
cluster          starts all parts, restarts the ones that die, stops them
parts            one worker or the router as a process: how it starts, when it is ready, how it ended
nursery          a process that has imported torch and forks workers
model            from what the user wrote to a model folder
report           what the terminal shows
"""
