"""The TensorBoard tab "Glassy": what the event files carry, and the page that shows it."""
