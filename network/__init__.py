"""Networks: links, leases, firewall rules and names."""
