"""Around optax: data, the loop, the run's folder, and what people look at. Not imported by `import manual_backprop`."""
