"""How the miniature's learned models are trained and measured. No part of the package, which never imports this."""
