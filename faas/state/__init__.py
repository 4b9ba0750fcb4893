"""What the host must remember: functions, their versions, and which of them serves."""
