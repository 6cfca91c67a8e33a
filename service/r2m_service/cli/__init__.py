"""The commands that exist where the service is installed: `r2m serve`, `doctor` and `config`."""

from r2m_service.cli._config import config
from r2m_service.cli._doctor import doctor
from r2m_service.cli._serve import serve

__all__ = ["config", "doctor", "serve"]
