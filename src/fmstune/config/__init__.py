"""What a job is, and how words become one."""
