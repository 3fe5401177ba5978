"use strict";
{
  const line = document.querySelector(".status");
  const look = async () => {
    try {
      const found = await (await fetch("state", { cache: "no-store" })).json();
      line.textContent = found.words;
      if (found.state !== line.dataset.state && found.ready) location.reload();
    } catch {
      line.textContent = "The server has ended; this page stays as it was.";
      clearInterval(timer);
    }
  };
  const timer = setInterval(look, 3000);
}
