//! Reports the socket table of a host to a fleetsock-server.
