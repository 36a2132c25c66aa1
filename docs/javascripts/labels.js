// Names for parts of the theme's page that screen readers would find without one.
(() => {
  const label = () => {
    document.querySelector(".md-search[role=dialog]")?.setAttribute("aria-label", "Search dialog");
    document.querySelector(".md-search__options")?.setAttribute("aria-label", "Search options");
    document.querySelectorAll(".md-code__nav").forEach((nav, number) => {
      const name = `Code block ${number + 1}`;
      if (nav.getAttribute("aria-label") !== name) nav.setAttribute("aria-label", name);
    });
  };
  label();
  new MutationObserver(label).observe(document.body, { childList: true, subtree: true });
})();
