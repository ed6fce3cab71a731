module kagent.dev/embeddings/tools/pause

go 1.25.0
