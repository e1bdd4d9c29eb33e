"""What other libraries' extension points look like, as their released packages said when asked."""
