"use strict";
{
  const line = document.querySelector(".status");
  const look = async () => {
    try {
      const answer = await fetch("state", { cache: "no-store" });
      if (!answer.ok) return; // a file half written; the next look finds it whole
      const found = await answer.json();
      line.textContent = found.words;
      if (found.state !== line.dataset.state && found.ready) location.reload();
    } catch {
      line.textContent = "The server has ended; this page stays as it was.";
      clearInterval(timer);
    }
  };
  const timer = setInterval(look, 3000);
}
