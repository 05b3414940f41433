# The image that sky-deploy makes by itself from its own static binary; here to be built by hand:
# cargo build --release && cp target/*/release/sky-deploy sky-agent && docker build -t sky-agent .
FROM scratch
COPY sky-agent /sky-agent
ENTRYPOINT ["/sky-agent"]
