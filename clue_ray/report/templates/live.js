"use strict";
{
  const line = document.querySelector(".status");
  const poll = async () => {
    try {
      const answer = await fetch("state", { cache: "no-store" });
      if (!answer.ok) return; // a half-written file; the next poll finds it complete
      const found = await answer.json();
      line.textContent = found.words;
      if (found.state !== line.dataset.state && found.ready) location.reload();
    } catch {
      line.textContent = "The server has stopped; this page no longer refreshes.";
      clearInterval(timer);
    }
  };
  const timer = setInterval(poll, 3000);
}
