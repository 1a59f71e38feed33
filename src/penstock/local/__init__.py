"""Local mode: router, prefill and decode workers as processes of one machine.

up, demo, chat   what the commands do; `ask` is the client that the latter two share
cluster          starts all parts, restarts the ones that die, stops them
parts            the kinds of parts: workers and the router; `child` is one process of a part
forks, nursery   workers by fork of a process that has imported torch: our side and its side; `orders` between them
tether           the router, tied to the life of this process
config, model    what to start: flags, and from what the user wrote to a model folder
report, logs     what the terminal shows; `foreground` turns Ctrl-C into an orderly end
"""
