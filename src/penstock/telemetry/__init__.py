"""What a process tells about itself: logs, and traces of requests. Shared by all components; imports none of them."""
